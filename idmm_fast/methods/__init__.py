"""Pretraining methods, one file each."""

import inspect

from ..config.pretrain import METHODS as CLASSES
from .dino import DINO
from .idmm import IDMM
from .moco_v2 import MoCoV2
from .moco_v3 import MoCoV3
from .simclr import SimCLR
from .supcon import SupCon

METHODS = {name: globals()[kind] for name, kind in CLASSES.items()}

_GIVEN = ("self", "backbone", "labels", "images", "views")


def options_of(name):
    """{option: default} of a method other than IDMM, whose settings are keys of the configuration."""
    parameters = inspect.signature(METHODS[name].__init__).parameters
    return {} if name == "idmm" else {k: p.default for k, p in parameters.items() if k not in _GIVEN}


def create_method(name, backbone, labels, views, options):
    """The method `name` other than IDMM on `backbone`. labels: int64 (images,), -1 where there are none. views: how many each group has.

    Raises ValueError for options that the method does not have, and for data or views that do not fit it.
    """
    known = options_of(name)
    for key in options:
        if key not in known:
            raise ValueError(f"method.options: {name} has no '{key}'; it has {', '.join(known)}")
    if name.startswith("moco") and views != [2]:
        raise ValueError(
            f"crops.groups: {name} needs one group of two views; --config rn_configs/methods/{name}.yaml sets what it needs"
        )
    if sum(views) < 2:
        raise ValueError(f"crops.groups: {name} needs at least two views of an image")
    if name == "supcon" and int(labels.min()) < 0:
        raise ValueError("supcon needs labels, and data.train has none")
    given = {"labels": labels, "images": labels.numel(), "views": views}
    needs = inspect.signature(METHODS[name].__init__).parameters
    return METHODS[name](backbone, **{k: v for k, v in given.items() if k in needs}, **options)


__all__ = ["DINO", "IDMM", "METHODS", "MoCoV2", "MoCoV3", "SimCLR", "SupCon", "create_method", "options_of"]
