"""Backbones, the heads on them, and their weights."""

from .backbone import create_backbone, feature_dim
from .head import Classifier, init_head
from .normalize import Normalize
from .weights import load_backbone, save_backbone, save_classifier, timm_config

__all__ = [
    "Classifier",
    "Normalize",
    "create_backbone",
    "feature_dim",
    "init_head",
    "load_backbone",
    "save_backbone",
    "save_classifier",
    "timm_config",
]
