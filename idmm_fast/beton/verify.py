"""Checking every byte of a beton: what `write_datasets.py --verify` does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import BetonError
from ..files import sha256
from ..limits import cores
from .account import printable
from .decode import decode_row
from .format import JPG, RAW
from .jpeg import MESSAGES, OK, Decoder
from .read import Beton, open_beton
from .write import sidecar_path


def verify(path: str | Path, workers: int = 0) -> str:
    """Check header, tables, page bounds, the sidecar, and every image's own header, checksum and pixels.

    Args:
        path: the beton.
        workers: threads; 0: one a core.

    Returns:
        A summary of a few lines.

    Raises:
        BetonError: something is wrong; the message names the first rows.
        FileNotFoundError: there is no such file.
    """
    beton = open_beton(path)
    pages = beton.page_size
    crossing = np.flatnonzero(beton.ptr // pages != (beton.ptr + beton.length - 1) // pages)
    if crossing.size:
        raise BetonError(
            f"{path} is damaged: row {crossing[0]} crosses the end of a page; stock FFCV could not read it"
        )
    _check_pixels(beton, path, workers or cores())
    _check_sidecar(beton, path)
    return _summary(beton, path)


def _check_pixels(beton: Beton, path: str | Path, workers: int) -> None:
    def check(rows: np.ndarray) -> list[str]:
        decoder, wrong = Decoder(), []
        for row in rows:
            code = decode_row(beton, row, decoder)[1]
            if code != OK:
                wrong.append(f"row {row}: {MESSAGES[code]}")
            bar.update()
        return wrong

    with (
        tqdm(total=len(beton), desc="rows", unit="img", leave=False, disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        wrong = [w for part in pool.map(check, np.array_split(np.arange(len(beton)), 8 * workers)) for w in part]
    if wrong:
        raise BetonError(
            f"{path} is damaged: {len(wrong)} of {len(beton)} images can't be read ({'; '.join(wrong[:5])}). "
            f"Convert it again."
        )


def _check_sidecar(beton: Beton, path: str | Path) -> None:
    if not beton.sidecar:
        if (beside := sidecar_path(path)).exists():
            raise BetonError(f"{beside} is damaged, or not of this {beton.path.name}, or that is. Convert it again.")
        return
    size = beton.path.stat().st_size
    with tqdm(total=size, desc="SHA-256", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        if sha256(path, bar.update) != beton.sidecar.get("sha256"):
            raise BetonError(
                f"{path} is not the file that its sidecar describes: the SHA-256 differs. Convert it again."
            )
    if beton.sidecar.get("count") != len(beton):
        raise BetonError(
            f"{path} has {len(beton)} rows, and its sidecar says {beton.sidecar.get('count')}. Convert it again."
        )


def _summary(beton: Beton, path: str | Path) -> str:
    counts = np.bincount(beton.label[beton.label >= 0], minlength=len(beton.classes))
    modes = ", ".join(
        f"{int((beton.mode == mode).sum())} {name}"
        for mode, name in ((JPG, "JPEG"), (RAW, "raw"))
        if (beton.mode == mode).any()
    )
    smallest = f"{int(beton.width.min())} x {int(beton.height.min())}"
    largest = f"{int(beton.width.max())} x {int(beton.height.max())}"
    names = ", ".join(f"{name} {n}" for name, n in zip(beton.classes, counts))
    classes = f"{counts.size} classes of {counts.min()} to {counts.max()} images" if counts.size else "no classes"
    unlabelled = int((beton.label < 0).sum())
    lines = [
        f"{path} is intact: {len(beton)} images ({modes}), {beton.path.stat().st_size / 1e6:.1f} MB, "
        f"{smallest} to {largest} pixels",
        f"checksums: {'every row' if beton.sums.size else 'none (not written by this project)'}; "
        f"sidecar: {'agrees' if beton.sidecar else 'none'}",
        classes
        + (f", {unlabelled} images without a label" if unlabelled else "")
        + (f": {names}" if 0 < counts.size <= 40 else ""),
    ]
    return "\n".join(map(printable, lines))
