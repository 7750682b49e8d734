"""Pretraining vision transformers on small image datasets: instance discrimination with multi-crop and CutMix."""

from .api import embed, export, finetune, pretrain

__version__ = "0.2.0"
__all__ = ["embed", "export", "finetune", "pretrain"]
