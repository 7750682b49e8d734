"""A folder of images as FFCV datasets (`.beton` files), converted once and kept."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .files import replacing
from .limits import cache_folder
from .lock import Lock

if TYPE_CHECKING:
    from .datasets import Split


def convert(data: str | Path) -> dict[str, Path]:
    """The FFCV datasets of `data`.

    A folder is converted once, and again when its files change. The results are kept under ~/.cache/idmm_fast, or where
    the environment variable IDMM_FAST_CACHE says (without either, in a temporary folder). Beside each is a .txt with
    the file of every row. While another process converts the same folder, this one waits for it.

    Args:
        data: a .beton file, or a folder of images: FOLDER/CLASS/*, FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or
            images without classes.

    Returns:
        {"train": path}, and "test" if there is one.

    Raises:
        DatasetError: for a folder that is not laid out so.
        WriteError: if the conversion fails.
    """
    from .datasets import folder

    data = Path(data)
    if data.suffix == ".beton":
        return {"train": data}
    splits = folder.load(data)
    target = cache_folder() / f"{data.resolve().name}-{_fingerprint(data, splits)[:12]}"
    betons = {name: target / f"{name}.beton" for name in splits}

    def missing() -> list[str]:
        return [name for name, beton in betons.items() if not (beton.exists() and beton.with_suffix(".txt").exists())]

    if missing():
        target.mkdir(parents=True, exist_ok=True)
        with Lock(target / ".lock", str(target), wait=True):
            for name in missing():  # perhaps none, after waiting for another process
                _write(betons[name], splits[name], name, data)
    return betons


def _fingerprint(data: Path, splits: Mapping[str, Split]) -> str:
    """Hex digits that change with the folder's name and with the names, sizes and times of its images."""
    seen = hashlib.sha256(_bytes(str(data.resolve())))
    for split in splits.values():
        for path in cast(Sequence[Path], split.images):
            state = path.stat()
            seen.update(_bytes(f"{path} {state.st_size} {state.st_mtime_ns}\n"))
    return seen.hexdigest()


def _write(beton: Path, split: Split, name: str, data: Path) -> None:
    """Write a split of the folder `data`, and beside it the list of the file of every row."""
    from .beton import write_beton

    written = write_beton(beton, split, dataset="folder", name=name)
    images = cast(Sequence[Path], split.images)
    with replacing(beton.with_suffix(".txt")) as draft:
        draft.write_bytes(_bytes("".join(f"{images[place]}\n" for place in written.places)))
    skipped = f", {len(written.skipped)} skipped" if written.skipped else ""
    print(_printable(f"{beton}: {written.count} images of {data}{skipped}"))


def _bytes(text: str) -> bytes:
    """Text with names of files in it, to the names' own bytes in any locale."""
    return text.encode("utf-8", "surrogateescape")


def _printable(text: str) -> str:
    """The same, so that any terminal takes it."""
    encoding = sys.stdout.encoding or "utf-8"
    return _bytes(text).decode("utf-8", "replace").encode(encoding, "replace").decode(encoding)
