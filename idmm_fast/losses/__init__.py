"""Losses."""

from .fused import Shard, fused_instance_loss
from .instance import instance_loss
from .sharded import ShardedHead

__all__ = ["Shard", "ShardedHead", "fused_instance_loss", "instance_loss"]
