"""Contact sheets: of each class, or of many classes a row each."""

import re
from pathlib import Path

from PIL import Image, ImageDraw

from ..beton import printable
from ..files import replacing
from .look import ROW, SHEET, THUMBNAIL, Inspection

_CLASSES_A_PAGE, _TITLE = 25, 200  # rows of a page; pixels of the classes' names beside them


def write_sheets(found: Inspection, out: Path) -> list[Path]:
    """Write contact sheets into a folder. Returns the files.

    A sheet a class, OUT/SPLIT_NUMBER_CLASS.png; where there are many classes, pages of them,
    OUT/SPLIT_classes_FIRST-LAST.png.
    """
    filled = {key: images for key, images in sorted(found.thumbnails.items()) if images}
    if filled:
        out.mkdir(parents=True, exist_ok=True)
    if found.sheet == SHEET:
        return [_write_class(found, key, images, out) for key, images in filled.items()]
    files = []
    for split in found.classes:
        of_split = [(label, images) for (of, label), images in filled.items() if of == split]
        for first in range(0, len(of_split), _CLASSES_A_PAGE):
            page = of_split[first : first + _CLASSES_A_PAGE]
            numbers = "-".join(f"{max(0, label):04d}" for label in (page[0][0], page[-1][0]))
            files.append(out / f"{_file_name(split)}_classes_{numbers}.png")
            _save(_page(found, split, page), files[-1])
    return files


def _name(found: Inspection, split: str, label: int) -> str:
    return found.classes[split][label] if label >= 0 else "unlabelled"


def _file_name(text: str) -> str:
    """The beginning of a text, with nothing in it that a file's name can't have; at most 200 bytes."""
    return re.sub(r"[^\w.-]+", "_", printable(text)).encode()[:200].decode("utf-8", "ignore")


def _write_class(found: Inspection, key: tuple[str, int], images: list[Image.Image], out: Path) -> Path:
    """A sheet of one class."""
    columns = min(ROW, len(images))
    sheet = Image.new("RGB", (columns * THUMBNAIL, -(-len(images) // columns) * THUMBNAIL), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * THUMBNAIL, k // columns * THUMBNAIL))
    file = out / f"{_file_name(f'{key[0]}_{key[1]:04d}_{_name(found, *key)}')}.png"
    _save(sheet, file)
    return file


def _save(sheet: Image.Image, file: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(file) as draft:
        sheet.save(draft, "PNG")


def _page(found: Inspection, split: str, rows: list[tuple[int, list[Image.Image]]]) -> Image.Image:
    """A page of several classes, a row each."""
    page = Image.new("RGB", (_TITLE + ROW * THUMBNAIL, len(rows) * THUMBNAIL), "white")
    draw = ImageDraw.Draw(page)
    for k, (label, images) in enumerate(rows):
        title = _name(found, split, label)[:32].encode("latin-1", "replace").decode("latin-1")
        draw.text((4, k * THUMBNAIL + THUMBNAIL // 2 - 6), title, fill="black")  # PIL's own font has no more letters
        for column, image in enumerate(images[:ROW]):
            page.paste(image, (_TITLE + column * THUMBNAIL, k * THUMBNAIL))
    return page
