"""Split lists: text files that name the images of a dataset's splits, so that others can convert the same images.

One image a line, the parts separated by tabs, in the order of the rows of the converted files:

    train <tab> banded <tab> banded/banded_0002.jpg <tab> 0123456789abcdef

split (train or test), class, file, and (optional) the luma digest of the image, see `luma_digest`. Classes are numbered
in the order of their sorted names. `#` begins a comment. Lines that begin with `@` are settings:

    @match file           files are found by the end of their path (default)
    @match luma           images are found by their digest, whatever their files are called
    @shorter_side 256     an original was shrunk (Lanczos) until its shorter side had so many pixels ...
    @quality 88           ... and stored as a JPEG of this quality, before it was converted

An image whose digest is that of the list is taken as it is; any other is first prepared as the settings say.
"""

import hashlib
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .split import DatasetError, ImageSource, Split

_SPLITS = ("train", "test")
_MATCHES = ("file", "luma")
_DIGITS = 16  # of a digest
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for damaged files


@dataclass(frozen=True)
class ListedImage:
    """One line of a split list; `luma` is "" where the line has no digest."""

    line: int
    split: str
    class_name: str
    file: str
    luma: str


@dataclass(frozen=True)
class SplitList:
    """A split list.

    Attributes:
        path: The list's file, for messages.
        images: Its lines.
        match: "file" or "luma", what an image is found by.
        shorter_side: Pixels that originals are shrunk to, 0 for none.
        quality: Quality of the JPEG that an original is stored as, 0 for none.
    """

    path: Path
    images: list[ListedImage]
    match: str = "file"
    shorter_side: int = 0
    quality: int = 0


@dataclass(frozen=True)
class Prepared:
    """An original image, shrunk and stored as a JPEG when it is read."""

    source: ImageSource
    shorter_side: int
    quality: int

    def read_bytes(self) -> bytes:
        """The JPEG."""
        image = _open(self.source).convert("RGB")
        if self.shorter_side:
            ratio = self.shorter_side / min(image.size)
            width, height = (round(side * ratio) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        result = io.BytesIO()
        image.save(result, "JPEG", quality=self.quality)
        return result.getvalue()

    def __str__(self) -> str:
        return str(self.source)


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    return Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()))


def luma_digest(source: ImageSource) -> str:
    """The first 16 hex digits of the SHA-256 of an image's luma plane, uint8 (H, W), row by row.

    Of a JPEG it is the stored plane, so that the digest does not depend on how encoder and decoder resample colour.

    Args:
        source: A path, encoded bytes, anything with read_bytes(), or uint8 pixels (H, W) or (H, W, 3).

    Returns:
        16 hex digits.

    Raises:
        OSError, ValueError, SyntaxError: The image can't be read.
    """
    image = _open(source)
    image.draft("L", image.size)
    return hashlib.sha256(image.convert("L").tobytes()).hexdigest()[:_DIGITS]


def read_split_list(path: Path) -> SplitList:
    """Read a split list.

    Args:
        path: The file, UTF-8.

    Returns:
        Its lines and settings.

    Raises:
        DatasetError: A line is malformed; the message has its number. Or the list names no image.
        OSError: The file can't be read.
    """
    settings: dict[str, str | int] = {}
    images: list[ListedImage] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not a text file in UTF-8, so not a split list.") from None
    for number, text in enumerate(lines, 1):
        try:
            if text.startswith("@"):
                settings.update([_setting(text)])
            elif text.strip() and not text.startswith("#"):
                images.append(_listed_image(number, text))
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: {error}. Mend the line; see --help for the format.") from None
    if not images:
        raise DatasetError(f"{path} names no image. A line is SPLIT, CLASS and FILE, separated by tabs.")
    if "shorter_side" in settings and "quality" not in settings:
        raise DatasetError(f"{path} has @shorter_side and no @quality. Add it, e.g. @quality 90.")
    listing = SplitList(path, images, **settings)  # type: ignore[arg-type]
    _check_keys(listing)
    return listing


def _check_keys(listing: SplitList) -> None:
    """Refuse a list in which what images are found by is missing or stands twice."""
    first: dict[str, int] = {}
    for image in listing.images:
        key = image.luma if listing.match == "luma" else image.file
        where = f"{listing.path}, line {image.line}"
        if not key:
            raise DatasetError(f"{where}: the digest is missing, and the list says @match luma. Add it.")
        if (before := first.setdefault(key, image.line)) != image.line:
            raise DatasetError(f"{where} names the same image as line {before}. Remove one of them.")


def _setting(text: str) -> tuple[str, str | int]:
    """The name and value of a line `@name value`; ValueError says what is wrong with it."""
    name, _, value = text[1:].strip().partition(" ")
    if name == "match" and value in _MATCHES:
        return name, value
    if name == "shorter_side" and value.isdecimal() and 0 < int(value) < 65536:
        return name, int(value)
    if name == "quality" and value.isdecimal() and 0 < int(value) <= 100:
        return name, int(value)
    raise ValueError(f"'{text}' is not @match file|luma, @shorter_side PIXELS or @quality 1..100")


def _listed_image(number: int, text: str) -> ListedImage:
    """The image that a line names; ValueError says what is wrong with it."""
    parts = text.split("\t")
    if len(parts) not in (3, 4) or not all(parts):
        raise ValueError(f"'{text}' is not SPLIT, CLASS, FILE and perhaps a digest, separated by tabs")
    split, class_name, file, luma = (*parts, "")[:4]
    if split not in _SPLITS:
        raise ValueError(f"the split '{split}' is not train or test")
    if luma and (len(luma) != _DIGITS or set(luma) - set("0123456789abcdef")):
        raise ValueError(f"the digest '{luma}' is not {_DIGITS} hex digits")
    return ListedImage(number, split, class_name, file, luma)


def choose_listed(splits: dict[str, Split], listing: SplitList) -> dict[str, Split]:
    """The images that a split list names, in its order and with its classes.

    Args:
        splits: A dataset's images. Their own division into splits and their labels do not matter.
        listing: The list.

    Returns:
        {"train": Split, ...}, as the list has them.

    Raises:
        DatasetError: Images are missing, ambiguous or can't be read. The message counts them and names the first.
    """
    candidates = [(_path(split, i), split.images[i]) for split in splits.values() for i in range(len(split))]
    found = _find_by_luma(listing, candidates) if listing.match == "luma" else _find_by_file(listing, candidates)
    missing = [image for image in listing.images if image.line not in found]
    if missing:
        raise DatasetError(
            f"{len(missing):,} of the {len(listing.images):,} images of {listing.path} are missing, first "
            f"{missing[0].file} (line {missing[0].line}). {len(candidates):,} images were looked through. "
            f"Name the folder of the dataset's original files with --root."
        )
    classes = sorted({image.class_name for image in listing.images})
    index = {name: label for label, name in enumerate(classes)}
    result = {}
    for split in _SPLITS:
        images = [image for image in listing.images if image.split == split]
        if images:
            sources, labels = [found[image.line] for image in images], [index[image.class_name] for image in images]
            result[split] = Split(sources, labels, classes, [image.file for image in images])
    return result


def _path(split: Split, i: int) -> str:
    """Where image `i` is, with forward slashes."""
    source = split.images[i]
    return source.as_posix() if isinstance(source, Path) else split.name(i)


def _forms(listing: SplitList, source: ImageSource) -> Iterator[ImageSource]:
    """An image as it is, then as the settings of the list prepare it."""
    yield source
    if listing.quality:
        yield Prepared(source, listing.shorter_side, listing.quality)


def _find_by_luma(listing: SplitList, candidates: Iterable[tuple[str, ImageSource]]) -> dict[int, ImageSource]:
    """{line: image} of the images whose digest is listed; those that can't be read are passed over."""
    wanted = {image.luma: image.line for image in listing.images}
    found: dict[int, ImageSource] = {}
    for _, source in tqdm(candidates, desc="looking for listed images", unit="img", disable=None):
        try:
            for form in _forms(listing, source):
                if (line := wanted.get(luma_digest(form))) is not None:
                    found.setdefault(line, form)
                    break
        except _UNREADABLE:
            continue
    return found


def _find_by_file(listing: SplitList, candidates: Iterable[tuple[str, ImageSource]]) -> dict[int, ImageSource]:
    """{line: image} of the images whose path ends with the listed one; says so where their pixels differ."""
    by_name: dict[str, list[tuple[str, ImageSource]]] = {}
    for path, source in candidates:
        by_name.setdefault(path.rsplit("/", 1)[-1], []).append((path, source))
    found: dict[int, ImageSource] = {}
    lines: dict[str, int] = {}  # of a path, the line that named it first
    ambiguous, differing = [], []
    for image in tqdm(listing.images, desc="looking for listed images", unit="img", disable=None):
        same_name = by_name.get(image.file.rsplit("/", 1)[-1], [])
        hits = [(path, source) for path, source in same_name if f"/{path}".endswith(f"/{image.file}")]
        if len(hits) > 1:
            ambiguous.append((image, hits))
        elif hits:
            if (before := lines.setdefault(hits[0][0], image.line)) != image.line:
                raise DatasetError(
                    f"{listing.path}, line {image.line} names the same image as line {before}: {hits[0][0]}. "
                    f"Remove one of them."
                )
            found[image.line], same = _as_listed(listing, image, hits[0][1])
            if not same:
                differing.append(image)
    if ambiguous:
        image, hits = ambiguous[0]
        raise DatasetError(
            f"{len(ambiguous):,} images of {listing.path} are ambiguous, first {image.file} (line {image.line}), which "
            f"is {hits[0][0]} and {hits[1][0]}. Name a folder with --root that holds each file once."
        )
    if differing:
        print(
            f"warning: {len(differing):,} of the {len(listing.images):,} images of {listing.path} have other pixels "
            f"than those it was made of, first {differing[0].file} (line {differing[0].line}); results may differ",
            file=sys.stderr,
        )
    return found


def _as_listed(listing: SplitList, image: ListedImage, source: ImageSource) -> tuple[ImageSource, bool]:
    """The form of a found image that has the listed digest, else its last form; and whether no other was listed."""
    form = source
    try:
        for form in _forms(listing, source):
            if image.luma and luma_digest(form) == image.luma:
                return form, True
    except _UNREADABLE as error:
        raise DatasetError(f"{image.file} (line {image.line} of {listing.path}) can't be read: {error}.") from None
    return form, not image.luma
