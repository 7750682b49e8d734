"""Every image of a folder, or of betons, looked at once: its size, its pixels, what is wrong with it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..beton import Beton, account_lines, open_beton
from ..beton.account import make_account
from ..beton.decode import decode_rows
from ..beton.encode import choose_mode, read_rgb
from ..beton.pixels import is_deep, reason_of, with_image
from ..datasets import DatasetError, Split, folder
from ..limits import cores

TINY_CLASS = 10  # training images; with fewer, accuracy on the class is chance
MANY_CLASSES = 20  # of all splits together; then a contact sheet has several
SHEET, ROW, THUMBNAIL = 40, 8, 96  # images of a class on its own sheet, and in a row; pixels of a side of each

Row: TypeAlias = tuple[int, str, int]  # label, name, number in its split
Looked: TypeAlias = tuple[np.ndarray, str]  # uint8 (H, W, 3); "transparent", "deep" or ""


@dataclass(frozen=True)
class Seen:
    """An image that was looked at.

    Attributes:
        split: Of which split.
        row: Its number there.
        label: Its class, -1 for none.
        name: The file, or the row of a beton.
        height, width: In pixels.
        gray: Whether all its pixels are.
        kind: "transparent", "deep" (levels of more than 8 bits) or "".
        digest: SHA-256 of its size and pixels.
        damage: Why it can't be read, "" if it can.
    """

    split: str
    row: int
    label: int
    name: str
    height: int = 0
    width: int = 0
    gray: bool = False
    kind: str = ""
    digest: bytes = b""
    damage: str = ""


@dataclass
class Inspection:
    """What was found.

    Attributes:
        sources: {split: the images of a folder, or a beton}.
        images: All that were looked at.
        lines: The account of what was read.
        thumbnails: {(split, label): small images, a few}.
        stored: "raw" or "jpg", what a conversion would choose for the split `training`; "" of betons.
    """

    sources: Mapping[str, Split | Beton]
    images: list[Seen] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    thumbnails: dict[tuple[str, int], list[Image.Image]] = field(default_factory=dict)
    stored: str = ""

    @property
    def classes(self) -> dict[str, Sequence[str]]:
        """{split: names of the classes}."""
        return {name: source.classes for name, source in self.sources.items()}

    @property
    def training(self) -> str:
        """The split that a training would read."""
        return "train" if "train" in self.sources else next(iter(self.sources))

    def good(self, split: str) -> list[Seen]:
        """The images of a split that can be read."""
        return [image for image in self.images if image.split == split and not image.damage]

    @property
    def sheet(self) -> int:
        """How many thumbnails of a class are kept."""
        return SHEET if sum(map(len, self.classes.values())) <= MANY_CLASSES else ROW


def inspect(paths: Sequence[Path], labels: Mapping[str, str] | None = None, quiet: bool = False) -> Inspection:
    """Look at every image.

    Args:
        paths: A folder as of `--ds folder`, or betons, a split each.
        labels: Of a folder, the options of a table of labels, {"labels": file, "label_column": ...}; see
            datasets.folder.
        quiet: No progress bar.

    Raises:
        DatasetError, BetonError, OSError: There is no such thing, or it can't be read in one way alone.
    """
    if all(path.suffix == ".beton" for path in paths):
        if labels:
            raise DatasetError("--labels is for a folder; betons have their labels.")
        return _inspect_betons(paths, quiet)
    if len(paths) != 1:
        raise DatasetError("Name one folder, or betons alone: one for each split.")
    splits = folder.load(paths[0], **(labels or {}))
    accounts = {name: make_account(split, range(len(split)), [], []) for name, split in splits.items()}
    result = Inspection(splits)
    result.lines = account_lines(accounts, result.classes)
    result.stored = choose_mode(splits[result.training].images)
    for name, split in splits.items():
        rows = [(label, str(image), i) for i, (label, image) in enumerate(zip(split.labels, split.images))]
        _look(result, name, rows, _file_reader(split), quiet)
    return result


def _inspect_betons(paths: Sequence[Path], quiet: bool) -> Inspection:
    """`inspect` of betons."""
    betons: dict[str, Beton] = {}
    for path in paths:
        beton = open_beton(path)
        names = (beton.sidecar.get("split") or path.stem, path.stem)
        betons[next((name for name in names if name not in betons), str(path))] = beton
    result = Inspection(betons)
    for name, beton in betons.items():
        result.lines.append(f"  {name}: {beton.path}, {len(beton):,} image{'s' * (len(beton) != 1)}")
        rows = [(int(label), f"row {row} of {beton.path}", row) for row, label in enumerate(beton.label)]
        _look(result, name, rows, _row_reader(beton), quiet)
    return result


def _file_reader(split: Split) -> Callable[[int], Looked]:
    """Reads image number i of a split."""

    def read(i: int) -> Looked:
        source = split.images[i]
        data = source if isinstance(source, np.ndarray | bytes) else source.read_bytes()
        pixels = read_rgb(data)
        return pixels, "" if isinstance(data, np.ndarray) else with_image(data, _kind)

    return read


def _kind(image: Image.Image) -> str:
    """What is done to the pixels of an image before they are RGB of 8 bits."""
    return "deep" if is_deep(image) else "transparent" if image.has_transparency_data else ""


def _row_reader(beton: Beton) -> Callable[[int], Looked]:
    """Reads row i of a beton."""
    return lambda row: (decode_rows(beton, [row])[0], "")


def _look(result: Inspection, split: str, rows: Sequence[Row], read: Callable[[int], Looked], quiet: bool) -> None:
    """Add the images of a split to the result; `read` gives the pixels of the image with a number."""
    most = result.sheet

    def one(row: Row) -> tuple[Seen, Image.Image | None]:
        label, name, number = row
        try:
            pixels, kind = read(number)
        except Exception as error:  # PIL raises many kinds for damaged files
            return Seen(split, number, label, name, damage=reason_of(error)), None
        height, width = pixels.shape[:2]
        gray = bool((pixels[..., :1] == pixels).all())
        digest = hashlib.sha256(f"{height} {width} ".encode() + pixels.tobytes()).digest()
        small = None
        if len(result.thumbnails.get((split, label), ())) < most:
            small = Image.fromarray(pixels)
            small.thumbnail((THUMBNAIL, THUMBNAIL))
        return Seen(split, number, label, name, height, width, gray, kind, digest), small

    with ThreadPoolExecutor(cores()) as pool:
        for seen, small in tqdm(pool.map(one, rows), total=len(rows), desc=split, unit="img", disable=quiet or None):
            result.images.append(seen)
            sheet = result.thumbnails.setdefault((split, seen.label), [])
            if small is not None and len(sheet) < most:
                sheet.append(small)


def duplicates(images: Sequence[Seen]) -> list[list[Seen]]:
    """Groups of images whose pixels are equal, those of two images at least."""
    groups: dict[bytes, list[Seen]] = {}
    for image in images:
        if image.digest:
            groups.setdefault(image.digest, []).append(image)
    return [group for group in groups.values() if len(group) > 1]
