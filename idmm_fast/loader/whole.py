"""Decoding whole images of a beton, for pictures and checks."""

import numpy as np

from ..beton.format import RAW
from ..beton.jpeg import MESSAGES, OK, Decoder, decode_jpeg
from .operation import LoaderError


def decode_rows(beton, rows):
    """The images of these rows as stored: list of uint8 (H, W, 3). Raises LoaderError."""
    decoder = Decoder()
    images = []
    for row in rows:
        height, width = int(beton.height[row]), int(beton.width[row])
        data = beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]]
        out = np.empty(height * width * 3, np.uint8)
        if beton.mode[row] == RAW:
            out[:] = data[: out.size]
        elif (code := decode_jpeg(decoder.handle, data, height, width, out)) != OK:
            raise LoaderError(f"row {row} of {beton.path} can't be decoded: {MESSAGES[code]}")
        images.append(out.reshape(height, width, 3))
    return images
