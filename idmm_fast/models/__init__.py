"""Backbones and what sits on them."""

from .backbone import (
    Normalize,
    create_backbone,
    feature_dim,
    load_backbone,
    save_backbone,
    save_classifier,
    timm_config,
)
from .head import Classifier, init_head

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
