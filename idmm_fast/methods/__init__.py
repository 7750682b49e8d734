"""Pretraining methods, one file each; a method joins by its line in config.pretrain.METHODS."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..config.pretrain import METHODS as CLASSES
from .base import Method
from .idmm import IDMM, DenseLoss

METHODS: dict[str, type[Method]] = {
    name: getattr(importlib.import_module(f"{__name__}.{name}"), kind) for name, kind in CLASSES.items()
}

# Arguments of a method's class that are no options: what `create_method` gives.
_GIVEN = ("self", "backbone", "labels", "images", "crops")


def options_of(name: str) -> dict[str, Any]:
    """{option: default} of a method other than IDMM, whose settings are keys of the configuration."""
    parameters = inspect.signature(METHODS[name].__init__).parameters
    return {} if name == "idmm" else {k: p.default for k, p in parameters.items() if k not in _GIVEN}


def create_method(
    name: str, backbone: torch.nn.Module, labels: torch.Tensor, crops: Sequence[int], options: Mapping[str, Any]
) -> Method:
    """A method other than IDMM on a backbone.

    Args:
        name: a key of METHODS.
        backbone: a network that gives features (n, d).
        labels: int64 (images,), the classes of the training images, -1 where there are none.
        crops: how many crops each crop group has.
        options: further arguments of the method's class, see `options_of`.

    Raises:
        ValueError: for an option that the method does not have or can't use, and for data or crops that do not fit it.
    """
    method, known = METHODS[name], options_of(name)
    for key in options:
        if key not in known:
            raise ValueError(f"method.options: {name} has no '{key}'; it has {', '.join(known)}")
        if isinstance(options[key], bool) or not isinstance(options[key], int | float):
            raise ValueError(f"method.options: {key} of {name} is a number, not {options[key]!r}")
    if method.required_crops and tuple(crops) != method.required_crops:
        needed = " and ".join(f"one group of {count} crops" for count in method.required_crops)
        advice = f"--config rn_configs/methods/{name}.yaml sets what it needs"
        raise ValueError(f"crops.groups: {name} needs {needed}; {advice}")
    if sum(crops) < 2:
        raise ValueError(f"crops.groups: {name} needs at least 2 crops of an image")
    if method.needs_labels and int(labels.min()) < 0:
        raise ValueError(f"{name} needs labels, and data.train has none")
    if method.needs_labels and labels.unique().numel() < 2:
        raise ValueError(f"{name} needs images of two classes at least, and data.train has one: use another method")
    given = {"labels": labels, "images": labels.numel(), "crops": crops}
    needs = inspect.signature(method.__init__).parameters
    try:
        return method(backbone, **{k: v for k, v in given.items() if k in needs}, **options)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"method.options {dict(options)} do not go with {name}: {error}") from error


__all__ = ["IDMM", "METHODS", "DenseLoss", "Method", "create_method", "options_of"]
