"""What was found in images, as lines for the terminal."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from ..beton import printable
from .look import TINY_CLASS, Inspection, Seen, duplicates


def report_lines(found: Inspection) -> list[str]:
    """What was found, as lines for the terminal."""
    good = [image for image in found.images if not image.damage]
    damaged = [image for image in found.images if image.damage]
    lines = ["read", *found.lines, "images", *_image_lines(good)]
    lines.append(f"  {len(damaged):,} damaged{f': first {damaged[0].name}: {damaged[0].damage}' if damaged else ''}")
    lines += ["duplicates, by their pixels", *_duplicate_lines(duplicates(good))]
    lines += ["classes", *_class_lines(found)]
    return [printable(line) for line in lines]


def _image_lines(good: list[Seen]) -> list[str]:
    """Sizes and channels."""
    if not good:
        return []
    sides = np.array([(min(i.height, i.width), max(i.height, i.width)) for i in good])
    low, middle, high = (np.percentile(sides, p, axis=0).astype(int) for p in (0, 50, 100))
    gray = sum(i.gray for i in good)
    channels = [f"  {gray:,} gray, {len(good) - gray:,} in colour"]
    kinds = Counter(i.kind for i in good)
    for kind, words in (("transparent", "transparent: laid on white"), ("deep", "of more than 8 bits: scaled")):
        channels += [f"{kinds[kind]:,} {words}"] if kinds[kind] else []
    return [
        f"  shorter side {low[0]} to {high[0]} pixels, half of them up to {middle[0]}; longer side {low[1]} to "
        f"{high[1]}, half up to {middle[1]}",
        "; ".join(channels),
    ]


def _duplicate_lines(groups: list[list[Seen]]) -> list[str]:
    kinds: dict[str, Callable[[list[Seen]], list[Seen]]] = {
        "within a split": _in_one_split,
        "ACROSS SPLITS: accuracy on them is not to be trusted": lambda group: _differing(group, "split"),
        "with different labels": lambda group: _differing([i for i in group if i.label >= 0], "label"),
    }
    ordered = [sorted(group, key=lambda i: i.split != "train") for group in groups]
    lines = []
    for kind, choose in kinds.items():
        if those := [pair for pair in map(choose, ordered) if pair]:
            images = f"{len(those):,} image{'s' * (len(those) != 1)}"
            lines.append(f"  {images} twice or more {kind}; first {those[0][0].name} and {those[0][1].name}")
    return lines or ["  none"]


def _in_one_split(group: list[Seen]) -> list[Seen]:
    """The first two images that are in the same split; [] where there are none."""
    first: dict[str, Seen] = {}
    return next(([first[i.split], i] for i in group if first.setdefault(i.split, i) is not i), [])


def _differing(group: list[Seen], key: str) -> list[Seen]:
    """The first image, and the first that differs from it in `key`; [] where none does."""
    return next(([group[0], i] for i in group if getattr(i, key) != getattr(group[0], key)), [])


def _class_lines(found: Inspection) -> list[str]:
    split = found.training
    names = found.classes[split]
    counts = Counter(image.label for image in found.good(split) if image.label >= 0)
    if len(names) < 2:
        return ["  one class or none: enough for pretraining, not for fine-tuning and evaluation"]
    ordered = sorted(range(len(names)), key=lambda label: counts[label])
    fewest, most = ordered[0], max(range(len(names)), key=lambda label: counts[label])
    sizes = f"{counts[fewest]:,} ({names[fewest]}) to {counts[most]:,} ({names[most]}) images"
    sizes = f"{counts[most]:,} image{'s' * (counts[most] != 1)} each" if counts[fewest] == counts[most] else sizes
    lines = [f"  {len(names):,} classes in {split}, of {sizes}"]
    tiny = [f"{names[label]} ({counts[label]})" for label in ordered if counts[label] < TINY_CLASS]
    if tiny:
        more = f", and {len(tiny) - 8:,} more" if len(tiny) > 8 else ""
        lines.append(f"  {len(tiny):,} with fewer than {TINY_CLASS} images: {', '.join(tiny[:8])}{more}")
    if counts[most] > 10 * max(counts[fewest], 1):
        lines.append("  unbalanced: look at the accuracy of each class, not only at that of all images")
    missing = [s for s in found.classes if s != split and list(found.classes[s]) != list(names)]
    return lines + [f"  the classes of {other} are not those of {split}" for other in missing]
