"""Pretraining methods, one file each."""

from .idmm import IDMM

__all__ = ["IDMM"]
