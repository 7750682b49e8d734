"""Decoding whole images of a beton, for pictures and checks."""

import numpy as np

from ..loader.decoder import LoaderError, row_numbers
from .checksum import checksum
from .format import RAW
from .jpeg import ALTERED, CORRUPT, MESSAGES, OK, Decoder, decode_jpeg


def decode_row(beton, row, decoder):
    """One image as stored, and what is wrong with it: (uint8 (H, W, 3), OK) or (None, a code of beton.jpeg)."""
    height, width = int(beton.height[row]), int(beton.width[row])
    data = beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]]
    if beton.sums.size and checksum(data) != beton.sums[row]:
        return None, ALTERED
    if beton.mode[row] == RAW:
        wanted = height * width * 3
        return (data[:wanted].reshape(height, width, 3).copy(), OK) if data.size >= wanted else (None, CORRUPT)
    out = np.empty(height * width * 3, np.uint8)
    code = decode_jpeg(decoder.handle, data, height, width, out)
    return (out.reshape(height, width, 3), OK) if code == OK else (None, code)


def decode_rows(beton, rows):
    """The images of these rows as stored: list of uint8 (H, W, 3). Raises LoaderError."""
    return list(decoded(beton, rows))


def decoded(beton, rows):
    """The same, one image at a time."""
    decoder = Decoder()
    for row in row_numbers(rows, beton):
        image, code = decode_row(beton, row, decoder)
        if code != OK:
            raise LoaderError(f"row {row} of {beton.path} can't be decoded: {MESSAGES[code]}")
        yield image
