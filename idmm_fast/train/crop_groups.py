"""The multi-crop groups that a configuration asks for, and the size of their crops in each epoch."""

from __future__ import annotations

import math
from types import SimpleNamespace

from ..config import ConfigError
from ..loader import MultiCropLoader, Views
from ..loader.order import SpreadOrder


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
    result: dict[int, list[int]] = {}
    before = 0.0
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
        if epoch in result:
            raise ConfigError(
                f"crops.schedule: the sizes from {before:g} and those from {step['from']:g} on begin with the same "
                f"epoch, {epoch + 1} of {epochs}; leave one of them out, or train longer"
            )
        result[epoch], before = sizes, step["from"]
    return result


def sizes_by_epoch(cfg: SimpleNamespace) -> dict[int, list[int]]:
    """{epoch: side of the crops of each group from it on, pixels}; epoch 0 is there."""
    return {0: [view.size for view in crop_views(cfg)]} | size_schedule(cfg)


def crop_sizes(cfg: SimpleNamespace) -> list[int]:
    """The distinct sides of crops of the run, pixels."""
    return sorted({size for sizes in sizes_by_epoch(cfg).values() for size in sizes})


def graphs(cfg: SimpleNamespace) -> int:
    """How many different passes the backbone makes, at most: a size, and the rows of a pass."""
    counts = [view.count for view in crop_views(cfg)]
    passes = set()
    for sizes in sizes_by_epoch(cfg).values():
        passes |= {(size, sum(n for n, s in zip(counts, sizes) if s == size)) for size in sizes}
    return len(passes)


def check_spread(cfg: SimpleNamespace, loader: MultiCropLoader) -> None:
    """Refuse a run that would end within a round of several blocks, some of which it would have seen more often.

    Raises:
        ConfigError: crops.spread does not divide training.epochs, or their number is not known.
    """
    order, spread, epochs = loader.traversal_order, cfg.crops.spread, cfg.training.epochs
    blocks = len(order.lengths) if isinstance(order, SpreadOrder) else 0
    if blocks <= 1 or not (cfg.training.minutes or epochs % spread):
        return
    batch = 2 * spread * loader.decoder.buffer_size(cfg.training.batch_size)
    enough = f"crops.spread_mb={-(-sum(order.lengths) * batch >> 20)} makes one block"
    if cfg.training.minutes:
        raise ConfigError(
            f"crops.spread={spread} has the images in {blocks} blocks, each in epochs of its own, and with "
            f"training.minutes nobody knows before the end how many epochs there are. {enough}; or take crops.spread=1"
        )
    fitting = " or ".join(str(n * spread) for n in (epochs // spread, epochs // spread + 1) if n)
    raise ConfigError(
        f"crops.spread={spread} has the images in {blocks} blocks, each in epochs of its own, and does not divide "
        f"training.epochs={epochs}: take {fitting}, or another crops.spread; {enough}"
    )


def describe_sizes(cfg: SimpleNamespace) -> str:
    """The sizes of the crops in words, "" where all are of model.image_size."""
    size = cfg.model.image_size
    if crop_sizes(cfg) == [size]:
        return ""
    changes = []
    for epoch, sizes in sizes_by_epoch(cfg).items():
        said = " and ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
        changes.append(f"of {said} pixels" + f" from epoch {epoch + 1} on" * (epoch > 0))
    none = "" if size in sizes else f" (at the end none of model.image_size={size})"
    return "crops " + ", ".join(changes) + none
