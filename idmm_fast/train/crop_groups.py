"""The multi-crop groups that a configuration asks for, and the size of their crops in each epoch."""

from __future__ import annotations

import math
from types import SimpleNamespace

from ..config import ConfigError
from ..loader import Views


def crop_views(cfg: SimpleNamespace) -> list[Views]:
    """The groups, with the sizes that hold before crops.schedule begins."""
    return [Views(g["count"], g.get("size", cfg.model.image_size), tuple(g["scale"])) for g in cfg.crops.groups]


def size_schedule(cfg: SimpleNamespace) -> dict[int, list[int]]:
    """{epoch: side of the crops of each group from it on, pixels}, of crops.schedule.

    Args:
        cfg: a configuration of config.pretrain.SCHEMA.

    Raises:
        ConfigError: crops.schedule does not fit crops.groups, or the length of the run.
    """
    groups, epochs, spread = len(cfg.crops.groups), cfg.training.epochs, cfg.crops.spread
    if cfg.crops.schedule and cfg.training.minutes:
        raise ConfigError(
            "crops.schedule is in fractions of training.epochs, and with training.minutes nobody knows before the end "
            "how many there are; leave one of them out"
        )
    result = {}
    for step in cfg.crops.schedule:
        sizes = step["size"] if isinstance(step["size"], list) else [step["size"]] * groups
        if len(sizes) != groups:
            raise ConfigError(
                f"crops.schedule: from {step['from']:g} on there are {len(sizes)} sizes, and crops.groups has {groups} "
                f"groups; give one size for all, or one for each"
            )
        epoch = math.ceil(round(step["from"] * epochs / spread, 6)) * spread
        if epoch >= epochs:
            raise ConfigError(
                f"crops.schedule: no epoch begins at {step['from']:g} of {epochs} epochs or later"
                + (f", where sizes change every {spread} epochs (crops.spread)" if spread > 1 else "")
                + "; begin earlier, or train longer"
            )
        result[epoch] = sizes
    return result


def sizes_by_epoch(cfg: SimpleNamespace) -> dict[int, list[int]]:
    """{epoch: side of the crops of each group from it on, pixels}; epoch 0 is there."""
    return {0: [view.size for view in crop_views(cfg)]} | size_schedule(cfg)


def crop_sizes(cfg: SimpleNamespace) -> list[int]:
    """The distinct sides of crops of the run, pixels."""
    return sorted({size for sizes in sizes_by_epoch(cfg).values() for size in sizes})


def describe_schedule(cfg: SimpleNamespace) -> str:
    """The sizes of crops.schedule in words, "" where there is none."""
    if not cfg.crops.schedule:
        return ""
    changes = []
    for epoch, sizes in sizes_by_epoch(cfg).items():
        said = " and ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
        changes.append(f"of {said} pixels" + f" from epoch {epoch + 1} on" * (epoch > 0))
    return "crops " + ", ".join(changes)
