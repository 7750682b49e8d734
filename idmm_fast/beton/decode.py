"""Images of a beton as stored, for pictures and checks."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import LoaderError
from .checksum import checksum
from .format import RAW
from .jpeg import ALTERED, CORRUPT, MESSAGES, OK, Decoder, decode_jpeg
from .read import Beton, row_numbers


def decode_row(beton: Beton, row: int, decoder: Decoder) -> tuple[np.ndarray | None, int]:
    """One image as stored, and what is wrong with it.

    Returns:
        (uint8 (H, W, 3), OK), or (None, a code of `jpeg`).
    """
    height, width = int(beton.height[row]), int(beton.width[row])
    data = beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]]
    if beton.sums.size and checksum(data) != beton.sums[row]:
        return None, ALTERED
    if beton.mode[row] == RAW:
        size = height * width * 3
        return (data[:size].reshape(height, width, 3).copy(), OK) if data.size >= size else (None, CORRUPT)
    out = np.empty(height * width * 3, np.uint8)
    code = decode_jpeg(decoder.handle, data, height, width, out)
    return (out.reshape(height, width, 3), OK) if code == OK else (None, code)


def decode_rows(beton: Beton, rows: Any) -> list[np.ndarray]:
    """The images of these rows (see `row_numbers`) as stored, uint8 (H, W, 3) each.

    Raises:
        LoaderError: an image can't be decoded.
    """
    return list(iter_rows(beton, rows))


def iter_rows(beton: Beton, rows: Any) -> Iterator[np.ndarray]:
    """As `decode_rows`, one image at a time."""
    decoder = Decoder()
    for row in row_numbers(rows, beton):
        image, code = decode_row(beton, row, decoder)
        if image is None:
            raise LoaderError(f"row {row} of {beton.path} can't be decoded: {MESSAGES[code]}")
        yield image
