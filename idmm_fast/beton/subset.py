"""Some rows of a beton as a beton of their own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.split import Split
from ..errors import BetonError
from .checksum import checksum
from .format import RAW
from .read import open_beton, row_numbers
from .write import ConversionResult, write_beton


def sample_rows(labels: np.ndarray, images: int, balanced: bool, seed: int) -> np.ndarray:
    """Sample rows at random.

    Args:
        labels: int64 (n,), of all rows.
        images: how many rows to choose.
        balanced: as many of each class as there can be, those left over at random.
        seed: of the choice.

    Returns:
        int64 (images,), row numbers, sorted.

    Raises:
        ValueError: there are fewer rows.
    """
    if not 0 < images <= labels.size:
        raise ValueError(f"{images} images were asked for, and there are {labels.size}")
    order = np.random.default_rng(seed).permutation(labels.size)
    if balanced:  # first one of each class, then a second one of each, ...
        turn = np.empty(labels.size, np.int64)
        for c in np.unique(labels):
            mine = np.flatnonzero(labels[order] == c)
            turn[mine] = np.arange(mine.size)
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:images])


@dataclass(frozen=True)
class _Jpeg:
    """A JPEG of a beton, in the memory map until it is read."""

    data: np.ndarray

    def read_bytes(self) -> bytes:
        return self.data.tobytes()


def write_subset(path: str | Path, rows: Any, out: str | Path) -> ConversionResult:
    """Write some rows of a beton to another one, bytes and labels as they are.

    Where some of the rows are JPEGs and some raw pixels, all become raw pixels.

    Args:
        path: the beton.
        rows: see `row_numbers`.
        out: the new beton.

    Raises:
        BetonError: the bytes of a row are not those that were written.
        ValueError: `rows` are none of this beton.
        WriteError: `out` can't be written.
    """
    beton = open_beton(path)
    rows = row_numbers(rows, beton)

    def image(row: int) -> _Jpeg | np.ndarray:
        data = beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]]
        if beton.sums.size and checksum(data) != beton.sums[row]:
            raise BetonError(
                f"row {row} of {path} was altered after it was written; see idmm-fast convert --verify. "
                f"Convert it again."
            )
        if beton.mode[row] != RAW:
            return _Jpeg(data)
        height, width = beton.height[row], beton.width[row]
        return data[: height * width * 3].reshape(height, width, 3)

    split = Split([image(row) for row in rows], [int(beton.label[row]) for row in rows], beton.classes)
    mode = "raw" if (beton.mode[rows] == RAW).any() else "jpg"
    return write_beton(
        out,
        split,
        dataset=beton.sidecar.get("dataset", ""),
        name=f"{len(rows)} rows of {path}",
        mode=mode,
        on_error="fail",
        quiet=True,
    )
