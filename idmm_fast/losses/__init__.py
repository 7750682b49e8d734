"""Losses: of instances and classes, contrastive, and DINO's."""

from .contrastive import contrastive_loss
from .dino import dino_loss
from .fused import fused_instance_loss
from .fused_step import Shard
from .instance import instance_loss
from .sharded import ShardedHead
from .sqrt_kl import sqrt_kl_loss

__all__ = [
    "Shard",
    "ShardedHead",
    "contrastive_loss",
    "dino_loss",
    "fused_instance_loss",
    "instance_loss",
    "sqrt_kl_loss",
]
