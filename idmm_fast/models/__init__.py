"""Backbones, the heads on them, and their weights."""

from .backbone import create_backbone, feature_dim
from .head import Classifier, FrozenBackbone, init_head
from .normalize import Normalize
from .read_weights import normalization_of, resolve_normalization
from .trained import TrainedNetwork, load_trained
from .weights import load_backbone, save_backbone, save_classifier, timm_config

__all__ = [
    "Classifier",
    "FrozenBackbone",
    "Normalize",
    "TrainedNetwork",
    "create_backbone",
    "feature_dim",
    "init_head",
    "load_backbone",
    "load_trained",
    "normalization_of",
    "resolve_normalization",
    "save_backbone",
    "save_classifier",
    "timm_config",
]
