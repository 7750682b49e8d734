"""What a folder of images or its betons hold: sizes, damage, duplicates, balance; and what would be done with them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .beton import account_lines, open_beton, printable
from .beton.account import make_account
from .beton.decode import decode_rows
from .beton.encode import choose_mode, read_rgb
from .datasets import DatasetError, Split, folder
from .limits import cores

TINY_CLASS = 10  # training images; with fewer, accuracy on the class is chance
SHEET, THUMBNAIL = 40, 96  # images of a contact sheet; pixels of a side of each


@dataclass(frozen=True)
class Seen:
    """An image that was looked at; `damage` says why it can't be read, "" if it can."""

    split: str
    label: int
    name: str
    height: int = 0
    width: int = 0
    gray: bool = False
    digest: bytes = b""
    damage: str = ""


@dataclass
class Inspection:
    """What was found.

    Attributes:
        images: All that were looked at.
        classes: {split: names of the classes}.
        lines: The account of what was read.
        thumbnails: {(split, label): small images, at most SHEET of them}.
        stored: "raw" or "jpg", what a conversion would choose; "" of betons.
    """

    images: list[Seen] = field(default_factory=list)
    classes: dict[str, Sequence[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    thumbnails: dict[tuple[str, int], list[Image.Image]] = field(default_factory=dict)
    stored: str = ""


def inspect(paths: Sequence[Path], quiet: bool = False) -> Inspection:
    """Look at every image.

    Args:
        paths: A folder as of `--ds folder`, or betons, a split each.
        quiet: No progress bar.

    Raises:
        DatasetError, BetonError, OSError: There is no such thing, or it can't be read in one way alone.
    """
    result = Inspection()
    if all(path.suffix == ".beton" for path in paths):
        for path in paths:
            beton = open_beton(path)
            name = beton.sidecar.get("split") or path.stem
            name = name if name not in result.classes else path.stem
            result.classes[name] = beton.classes
            result.lines.append(f"  {name}: {path}, {len(beton):,} images")
            rows = [(int(label), f"row {row} of {path}", row) for row, label in enumerate(beton.label)]
            _look(result, name, rows, lambda row, beton=beton: decode_rows(beton, [row])[0], quiet)  # type: ignore[misc]
        return result
    if len(paths) != 1:
        raise DatasetError("Name one folder, or betons alone: one for each split.")
    splits = folder.load(paths[0])
    accounts = {name: make_account(split, range(len(split)), [], []) for name, split in splits.items()}
    result.classes = {name: split.classes for name, split in splits.items()}
    result.lines = account_lines(accounts, result.classes)
    result.stored = choose_mode([image for split in splits.values() for image in split.images])
    for name, split in splits.items():
        rows = [(label, str(image), i) for i, (label, image) in enumerate(zip(split.labels, split.images))]
        _look(result, name, rows, _reader(split), quiet)
    return result


def _reader(split: Split) -> Callable[[int], np.ndarray]:
    return lambda i: read_rgb(split.images[i])


def _look(
    result: Inspection,
    split: str,
    rows: Sequence[tuple[int, str, int]],
    read: Callable[[int], np.ndarray],
    quiet: bool,
) -> None:
    """Add the images of a split, (label, name, what `read` takes) each, to the result."""

    def one(row: tuple[int, str, int]) -> tuple[Seen, Image.Image | None]:
        label, name, place = row
        try:
            pixels = read(place)
        except Exception as error:  # PIL raises many kinds for damaged files
            return Seen(split, label, name, damage=str(error) or type(error).__name__), None
        height, width = pixels.shape[:2]
        gray = bool((pixels[..., :1] == pixels).all())
        digest = hashlib.sha256(f"{height} {width} ".encode() + pixels.tobytes()).digest()
        small = None
        if len(result.thumbnails.get((split, label), ())) < SHEET:
            small = Image.fromarray(pixels)
            small.thumbnail((THUMBNAIL, THUMBNAIL))
        return Seen(split, label, name, height, width, gray, digest), small

    with ThreadPoolExecutor(cores()) as pool:
        for seen, small in tqdm(pool.map(one, rows), total=len(rows), desc=split, unit="img", disable=quiet or None):
            result.images.append(seen)
            sheet = result.thumbnails.setdefault((split, seen.label), [])
            if small is not None and len(sheet) < SHEET:
                sheet.append(small)


def duplicates(images: Sequence[Seen]) -> list[list[Seen]]:
    """Groups of images whose pixels are equal, those of two images at least."""
    groups: dict[bytes, list[Seen]] = {}
    for image in images:
        if image.digest:
            groups.setdefault(image.digest, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def report_lines(found: Inspection) -> list[str]:
    """What was found, as lines for the terminal."""
    good = [image for image in found.images if not image.damage]
    damaged = [image for image in found.images if image.damage]
    lines = ["read", *found.lines]
    if good:
        sides = np.array([(min(i.height, i.width), max(i.height, i.width)) for i in good])
        low, middle, high = (np.percentile(sides, p, axis=0).astype(int) for p in (0, 50, 100))
        lines += [
            "images",
            f"  shorter side {low[0]} to {high[0]} pixels, half of them up to {middle[0]}; longer side {low[1]} to "
            f"{high[1]}, half up to {middle[1]}",
            f"  {sum(i.gray for i in good):,} gray, {sum(not i.gray for i in good):,} in colour",
        ]
    lines.append(f"  {len(damaged):,} damaged{f': first {damaged[0].name}: {damaged[0].damage}' if damaged else ''}")
    lines += ["duplicates, by their pixels", *_duplicate_lines(duplicates(good))]
    lines += ["classes", *_class_lines(found)]
    return [printable(line) for line in lines]


def _duplicate_lines(groups: list[list[Seen]]) -> list[str]:
    kinds = {
        "within a split": [g for g in groups if len(g) > len({i.split for i in g})],
        "ACROSS SPLITS: accuracy on them is not to be trusted": [g for g in groups if len({i.split for i in g}) > 1],
        "with different labels": [g for g in groups if len({i.label for i in g if i.label >= 0}) > 1],
    }
    lines = []
    for kind, those in kinds.items():
        if those:
            first = sorted(those[0], key=lambda i: i.split != "train")
            lines.append(f"  {len(those):,} images twice or more {kind}; first {first[0].name} and {first[1].name}")
    return lines or ["  none"]


def _class_lines(found: Inspection) -> list[str]:
    split = "train" if "train" in found.classes else next(iter(found.classes))
    names = found.classes[split]
    counts = Counter(i.label for i in found.images if i.split == split and i.label >= 0 and not i.damage)
    if len(names) < 2:
        return ["  one class or none: enough for pretraining, not for fine-tuning and evaluation"]
    ordered = sorted(range(len(names)), key=lambda label: counts[label])
    fewest, most = ordered[0], ordered[-1]
    lines = [
        f"  {len(names):,} classes in {split}, of {counts[fewest]:,} ({names[fewest]}) to {counts[most]:,} "
        f"({names[most]}) images"
    ]
    tiny = [f"{names[label]} ({counts[label]})" for label in ordered if counts[label] < TINY_CLASS]
    if tiny:
        lines.append(f"  {len(tiny):,} with fewer than {TINY_CLASS} images: {', '.join(tiny[:8])}")
    if counts[most] > 10 * max(counts[fewest], 1):
        lines.append("  unbalanced: look at the accuracy of each class, not only at that of all images")
    missing = [s for s in found.classes if s != split and list(found.classes[s]) != list(names)]
    return lines + [f"  the classes of {other} are not those of {split}" for other in missing]


def suggestion(found: Inspection, path: Path, name: str) -> list[str]:
    """Commands that fit so many images of such a size, as lines."""
    good = [i for i in found.images if i.split == "train" and not i.damage]
    if not good:
        return []
    side = float(np.median([min(i.height, i.width) for i in good]))
    size = next((s for s in (112, 64) if side >= s), 32)
    tuned = 224 if side >= 160 else size
    small = (
        ""
        if size > 64
        else ' --model.options="{patch_size: 8}"'
        if size == 64
        else ' --model.options="{patch_size: 4}"'
    )
    labelled = any(i.label >= 0 and i.split == "test" for i in found.images)
    share = "" if labelled else " --test-share 0.2"
    lines = [] if found.stored == "" else [f"  python write_datasets.py --ds folder --root {path} --name {name}{share}"]
    lines += [
        f"  python train_idmm.py --config rn_configs/own.yaml --data.train=data/{name}_train.beton "
        f"--model.image_size={size}{small}",
        f"  python finetune.py --config rn_configs/finetune/own.yaml --init runs/{name}_deit_tiny "
        f"--data.train=data/{name}_train.beton --data.test=data/{name}_test.beton --model.image_size={tuned}{small}",
    ]
    head = f"for {len(good):,} training images with a shorter side of {side:.0f} pixels"
    return [printable(line) for line in [f"{head}{f', stored as {found.stored}' if found.stored else ''}", *lines]]


def write_sheets(found: Inspection, out: Path) -> list[Path]:
    """Write a contact sheet a class, OUT/SPLIT_NUMBER_CLASS.png. Returns the files."""
    files = []
    for (split, label), images in sorted(found.thumbnails.items()):
        if not images:
            continue
        out.mkdir(parents=True, exist_ok=True)
        columns = min(8, len(images))
        sheet = Image.new("RGB", (columns * THUMBNAIL, -(-len(images) // columns) * THUMBNAIL), "white")
        for k, image in enumerate(images):
            sheet.paste(image, (k % columns * THUMBNAIL, k // columns * THUMBNAIL))
        named = re.sub(r"[^\w.-]+", "_", found.classes[split][label]) if label >= 0 else "unlabelled"
        files.append(out / printable(f"{split}_{label:04d}_{named}.png").replace("?", "_"))
        sheet.save(files[-1])
    return files
