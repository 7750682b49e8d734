"""timm's backbones at any resolution."""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from . import t2t  # noqa: F401  it registers its models with timm


def create_backbone(
    name: str,
    image_size: int,
    drop_path: float = 0.0,
    options: Mapping[str, Any] | None = None,
    further_sizes: Iterable[int] = (),
) -> nn.Module:
    """Make a model of timm, or a T2T-ViT (see t2t.py), without classifier: (B, 3, S, S) -> features (B, d).

    The feature is the class token after the last norm (DeiT, ViT, T2T-ViT) or the mean of the last stage's tokens
    (PVTv2, Swin).

    For images of further sizes a ViT resamples its position embedding (timm's `dynamic_img_size`); each of its weights
    stays as it would be without them.

    Args:
        name: timm's name of the model.
        image_size: S, in pixels.
        drop_path: the rate of stochastic depth.
        options: further arguments of the timm model, e.g. {"patch_size": 4, "depth": 6}.
        further_sizes: other S of images that it must take too, in pixels.

    Returns:
        The model, with random weights, in training mode.

    Raises:
        ValueError: for a name that timm does not know (the message has the nearest ones), options that do not fit, or a
            size that the model can't take, alone or among others.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5)
        hint = f"Names that come near: {', '.join(near)}." if near else "timm.list_models() lists all names."
        raise ValueError(f"timm has no model '{name}'. {hint}")
    options = dict(options or {}) | size_options(name, image_size)
    others = [size for size in dict.fromkeys(further_sizes) if size != image_size]
    try:
        backbone = _create(name, drop_path, options, bool(others))
        # Some models are made at sizes that they can't take.
        found = () if others else _output_shape(backbone, image_size)
    except Exception as error:  # timm raises many kinds
        raise ValueError(
            f"timm can't make '{name}' at {image_size} pixels with model.options {options}: {error}"
        ) from error
    for size in (image_size, *others) if others else ():
        found = _check_size(backbone, name, size, image_size)
    wanted = (1, feature_dim(backbone))
    if found != wanted:
        raise ValueError(
            f"'{name}' gives no feature vector: of an image it makes {found}, not {wanted}. Use another model.name."
        )
    _warn_of_unseen_pixels(backbone, name, image_size)
    return backbone.train()


def _create(name: str, drop_path: float, options: Mapping[str, Any], many_sizes: bool) -> nn.Module:
    """timm's model; where it will get images of many sizes, made for them, if there is a way to ask for that."""
    make = functools.partial(timm.create_model, name, pretrained=False, num_classes=0, drop_path_rate=drop_path)
    if many_sizes:
        try:
            module: Any = inspect.getmodule(timm.model_entrypoint(name))
            key = "strict_img_size" if "swin" in module.__name__ else "dynamic_img_size"
            return make(**{key: key == "dynamic_img_size", **options})
        except TypeError:  # PVTv2 takes any size as it is; what T2T-ViT can't take is found out soon
            pass
    return make(**options)


def _output_shape(backbone: nn.Module, size: int) -> tuple[int, ...]:
    """The shape of what the backbone, which is left in evaluation mode, makes of an image of this size."""
    with torch.no_grad():
        return tuple(backbone.eval()(torch.zeros(1, 3, size, size)).shape)


def _check_size(backbone: nn.Module, name: str, size: int, image_size: int) -> tuple[int, ...]:
    """`_output_shape`; or refuse a size that the backbone, made for `image_size` and others, can't take."""
    try:
        return _output_shape(backbone, size)
    except Exception as error:  # of any kind, by family
        why = str(error).rstrip(".")
        if size == image_size:
            raise ValueError(
                f"model.image_size={size} does not go with crops of other sizes and '{name}': {why}. Use another "
                f"model.image_size, or one size in crops.groups and crops.schedule"
            ) from error
        raise ValueError(
            f"crops of {size} pixels do not go with '{name}' at model.image_size={image_size}: {why}. Use another size "
            f"in crops.groups and crops.schedule, {image_size} for all of them, or a ViT or PVTv2"
        ) from error


def _warn_of_unseen_pixels(backbone: nn.Module, name: str, image_size: int) -> None:
    """Warn where the patches side by side leave a margin of the image out."""
    patches = getattr(backbone, "patch_embed", None)
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad:
        return
    patch = patches.patch_size[0]
    if image_size % patch:
        below = image_size // patch * patch
        warnings.warn(
            f"the last {image_size - below} of {image_size} pixels a side are never seen: model.image_size is no "
            f"multiple of the {patch} pixels of a patch of '{name}', as {below} and {below + patch} are",
            stacklevel=3,
        )


def size_options(name: str, image_size: int) -> dict[str, int]:
    """The argument that tells timm's model its resolution; none for PVTv2, which takes any as it is."""
    module: Any = inspect.getmodule(timm.model_entrypoint(name))
    return {} if "pvt" in module.__name__ else {"img_size": image_size}


def feature_dim(backbone: nn.Module) -> int:
    """Length of the backbone's feature vector."""
    return backbone.num_features  # type: ignore[return-value]  # timm's models have an int
