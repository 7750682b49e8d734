"""Pretraining vision transformers on small image datasets: instance discrimination with multi-crop and CutMix."""

__version__ = "0.2.0"  # before the imports, which look at it

from .api import embed, export, finetune, predict, pretrain

__all__ = ["embed", "export", "finetune", "predict", "pretrain"]
