"""timm's backbones at any resolution."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from . import t2t  # noqa: F401  it registers its models with timm


def create_backbone(
    name: str, image_size: int, drop_path: float = 0.0, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Make a model of timm, or a T2T-ViT (see t2t.py), without classifier: (B, 3, S, S) -> features (B, d).

    The feature is the class token after the last norm (DeiT, ViT, T2T-ViT) or the mean of the last stage's tokens
    (PVTv2, Swin).

    Args:
        name: timm's name of the model.
        image_size: S, in pixels.
        drop_path: the rate of stochastic depth.
        options: further arguments of the timm model, e.g. {"patch_size": 4, "depth": 6}.

    Returns:
        The model, with random weights, in training mode.

    Raises:
        ValueError: for a name that timm does not know (the message has the nearest ones), options that do not fit, or a
            size that the model can't take.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5)
        hint = f"Names that come near: {', '.join(near)}." if near else "timm.list_models() lists all names."
        raise ValueError(f"timm has no model '{name}'. {hint}")
    options = dict(options or {}) | size_options(name, image_size)
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path, **options)
        with torch.no_grad():  # some models are made at sizes that they can't take
            found = tuple(backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape)
    except Exception as error:  # timm raises many kinds
        raise ValueError(
            f"timm can't make '{name}' at {image_size} pixels with model.options {options}: {error}"
        ) from error
    wanted = (1, feature_dim(backbone))
    if found != wanted:
        raise ValueError(
            f"'{name}' gives no feature vector: of an image it makes {found}, not {wanted}. Use another model.name."
        )
    return backbone.train()


def size_options(name: str, image_size: int) -> dict[str, int]:
    """The argument that tells timm's model its resolution; none for PVTv2, which takes any as it is."""
    module: Any = inspect.getmodule(timm.model_entrypoint(name))
    return {} if "pvt" in module.__name__ else {"img_size": image_size}


def feature_dim(backbone: nn.Module) -> int:
    """Length of the backbone's feature vector."""
    return backbone.num_features  # type: ignore[return-value]  # timm's models have an int
