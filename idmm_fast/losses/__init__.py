"""Losses."""

from .instance import instance_loss

__all__ = ["instance_loss"]
