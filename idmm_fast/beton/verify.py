"""Checking a beton to the last byte: what `write_datasets.py --verify` says."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from ..files import sha256
from ..limits import cores
from . import BetonError, open_beton
from .decode import decode_row
from .jpeg import MESSAGES, OK, Decoder


def verify(path, workers=0):
    """Check header, tables, page bounds, every image's own header, checksum and pixels, and the sidecar. Returns a summary.

    Raises BetonError with the first rows that are wrong, and FileNotFoundError.
    """
    beton = open_beton(path)
    pages = beton.page_size
    crossing = np.flatnonzero(beton.ptr // pages != (beton.ptr + beton.length - 1) // pages)
    if crossing.size:
        raise BetonError(
            f"{path} is damaged: row {crossing[0]} crosses the end of a page; stock FFCV could not read it"
        )
    workers = workers or cores()

    def check(rows):
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
            f"{path} is damaged: {len(wrong)} of {len(beton)} images can't be read ({'; '.join(wrong[:5])}). Convert it again."
        )
    said = beton.sidecar
    if said:
        with tqdm(
            total=beton.path.stat().st_size, desc="SHA-256", unit="B", unit_scale=True, leave=False, disable=None
        ) as bar:
            if sha256(path, bar.update) != said.get("sha256"):
                raise BetonError(
                    f"{path} is not the file that its sidecar describes: the SHA-256 differs. Convert it again."
                )
        if said.get("count") != len(beton):
            raise BetonError(
                f"{path} has {len(beton)} rows, and its sidecar says {said.get('count')}. Convert it again."
            )
    counts = np.bincount(np.maximum(beton.label, 0), minlength=len(beton.classes))
    modes = ", ".join(
        f"{int((beton.mode == m).sum())} {name}" for m, name in ((0, "JPEG"), (1, "raw")) if (beton.mode == m).any()
    )
    lines = [
        f"{path} is whole: {len(beton)} images ({modes}), {beton.path.stat().st_size / 1e6:.1f} MB, "
        f"{int(beton.width.min())} x {int(beton.height.min())} to {int(beton.width.max())} x {int(beton.height.max())} pixels",
        f"checksums: {'every row' if beton.sums.size else 'none (not written by this project)'}; sidecar: {'agrees' if said else 'none'}",
        f"{counts.size} classes of {counts.min()} to {counts.max()} images"
        + (": " + ", ".join(f"{name} {n}" for name, n in zip(beton.classes, counts)) if counts.size <= 40 else ""),
    ]
    return "\n".join(lines)
