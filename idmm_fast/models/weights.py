"""Weights of backbones and classifiers: written for timm, and loaded, at another resolution too."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from ..config import read_run_config
from ..files import replacing
from .backbone import size_options
from .normalize import MEAN, STD
from .read_weights import read_weights


def save_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Write the weights, with timm's own keys, as safetensors, whole or not at all.

    Raises:
        OSError: the file can't be written.
    """
    _save(backbone.state_dict(), path)


def save_classifier(backbone: nn.Module, head: nn.Linear, path: str | Path) -> None:
    """Write backbone and classifier, with the keys of timm's model, as safetensors, whole or not at all.

    Raises:
        OSError: the file can't be written.
    """
    heads = {f"{name}.{k}": v for name in classifier_names(backbone) for k, v in head.state_dict().items()}
    _save(backbone.state_dict() | heads, path)


def _save(weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    # Copies, since some models share tensors, which safetensors refuses.
    weights = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
    with replacing(path) as temporary:  # not by save_file, whose files nobody else may read
        temporary.write_bytes(save(weights))


def classifier_names(backbone: nn.Module) -> list[str]:
    """timm's names of the last layer: mostly "head"; a distilled DeiT has two, whose outputs are averaged."""
    names = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier", "head")
    return [names] if isinstance(names, str) else list(names)


def timm_config(backbone: nn.Module, model: Any, label_names: Sequence[str]) -> dict[str, Any]:
    """The content of timm's config.json: the architecture, its arguments, and how images must be prepared.

    With it and model.safetensors in one folder, timm.create_model("local-dir:FOLDER", pretrained=True) makes the
    classifier.

    Args:
        backbone: made by `create_backbone`.
        model: the section `model` of the configuration: name, image_size, options, mean, std.
        label_names: the classes, in the order of the classifier's outputs.
    """
    names, image_size, classes = classifier_names(backbone), model.image_size, len(label_names)
    # What evaluation_loader resizes to before it cuts the centre out. timm takes floor(image_size / crop_pct), which
    # rounding must not make one less.
    resized = round(image_size * 256 / 224)
    crop_pct = image_size / resized
    crop_pct = crop_pct if math.floor(image_size / crop_pct) == resized else math.nextafter(crop_pct, 0)
    return {
        "architecture": model.name,
        "num_classes": classes,
        "label_names": list(label_names),
        "model_args": {**model.options, **size_options(model.name, image_size)},
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(getattr(model, "mean", None) or MEAN),
            "std": list(getattr(model, "std", None) or STD),
            "num_classes": classes,
            "classifier": names if len(names) > 1 else names[0],
        },
    }


def load_backbone(backbone: nn.Module, path: str | Path, head: nn.Linear | None = None) -> int:
    """Load weights into `backbone`.

    Position embeddings, and the tables of relative ones of Swin and BEiT, are resampled (bicubic, as timm does) where
    the resolution differs. Everything else must agree by name and shape. timm's own files of pretrained weights fit
    too.

    Args:
        backbone: made by `create_backbone`.
        path: see `read_weights`.
        head: the linear layer that gets the classifier of the file, which must have as many classes; None: the
            classifier is left out.

    Returns:
        The number of tensors that were loaded into the backbone.

    Raises:
        ValueError: the weights do not fit; the message names the first tensor.
    """
    own = backbone.state_dict()
    weights = read_weights(path, own)
    for key, value in own.items():
        if key in weights and weights[key].shape != value.shape:
            weights[key] = _resampled(backbone, key, weights[key], value.shape)
    wrong = sorted(k for k in own if k not in weights or own[k].shape != weights[k].shape)
    if len(wrong) == len(own) and not any(key in weights for key in own):
        raise ValueError(
            f"{path} has none of the {len(own)} tensors of this model; it begins with {', '.join(list(weights)[:3])}. "
            f"Use the model.name that it was trained with."
        )
    if wrong:
        key = wrong[0]
        found = f"of shape {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here" if key in weights else ""
        raise ValueError(
            f"{path} does not fit this model: {len(wrong)} of {len(own)} tensors are missing or of another shape, "
            f"first '{key}', {found or 'not there'}. Use the model.name and model.options that it was trained with"
            f"{_as_trained(path)}, and its model.image_size too where a model can't change that."
        )
    backbone.load_state_dict({k: weights[k] for k in own})
    if head is not None:
        _load_head(head, weights, classifier_names(backbone)[0], path)
    return len(own)


def _as_trained(path: str | Path) -> str:
    """The keys of the run's own model as they are typed, for a message; "" where `path` is in no run folder."""
    model = read_run_config(path).get("model")
    if not model:
        return ""
    options = shlex.quote(f"--model.options={json.dumps(model.get('options') or {})}")
    return f" (--model.name={model['name']} {options})"


def _resampled(backbone: nn.Module, key: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The position embedding `value` at the backbone's resolution; what is no position embedding as it is."""
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if key == "pos_embed" and grid and value.ndim == len(shape) == 3:
        prefix = shape[1] - math.prod(grid)  # places for class token and registers; not all models have them
        if prefix >= 0 and math.isqrt(max(0, value.shape[1] - prefix)) ** 2 == value.shape[1] - prefix > 0:
            return resample_abs_pos_embed(value, new_size=list(grid), num_prefix_tokens=prefix)
    elif key.endswith("relative_position_bias_table") and value.ndim == len(shape) == 2 and value.shape[1] == shape[1]:
        # In Swin: over a smaller map the window is smaller too.
        attention: Any = backbone.get_submodule(key.removesuffix(".relative_position_bias_table"))
        return resize_rel_pos_bias_table(value, attention.window_size, shape)
    return value


def _load_head(head: nn.Linear, weights: Mapping[str, torch.Tensor], name: str, path: str | Path) -> None:
    """Load the classifier, called `name` in timm's files."""
    for key, own in head.state_dict().items():
        found = weights.get(f"{name}.{key}", weights.get(f"head.{key}"))
        if found is None or found.shape != own.shape:
            has = "no classifier" if found is None else f"a classifier for {found.shape[0]} classes"
            raise ValueError(f"{path} has {has}, and {own.shape[0]} classes are wanted; leave out model.init_head")
        own.copy_(found)
