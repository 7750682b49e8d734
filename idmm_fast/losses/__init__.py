"""Losses."""

from .contrastive import contrastive_loss
from .dino import dino_loss
from .fused import Shard, fused_instance_loss
from .instance import instance_loss
from .sharded import ShardedHead

__all__ = ["Shard", "ShardedHead", "contrastive_loss", "dino_loss", "fused_instance_loss", "instance_loss"]
