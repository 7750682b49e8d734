"""From what a dataset holds (a file, bytes, pixels) to what a beton holds: a JPEG every decoder reads, or raw RGB."""

import io
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .checksum import checksum
from .format import JPG, MODES, RAW
from .jpeg import OK, Decoder, test_jpeg

MAX_SIDE = 65535  # the table's width and height are 16 bits


@dataclass(frozen=True)
class Encoded:
    """One image as stored: FFCV's write mode, size in pixels, and its bytes."""

    mode: int
    height: int
    width: int
    data: bytes

    @cached_property
    def sum(self):
        """The checksum of the bytes."""
        return checksum(np.frombuffer(self.data, np.uint8))


def describe(source):
    """What to call `source` in a message: its path, or what it is."""
    return (
        f"an image held in memory ({type(source).__name__})" if isinstance(source, bytes | np.ndarray) else str(source)
    )


def _bytes(source):
    if isinstance(source, bytes):
        return source
    return (Path(source) if isinstance(source, str) else source).read_bytes()


def _open(source):
    """(PIL image, its encoded bytes)."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(source), b""
    data = _bytes(source)
    return Image.open(io.BytesIO(data)), data


def stored_size(source, max_resolution=None):
    """(height, width) of `source` as it will be stored, from its header alone."""
    image, _ = _open(source)
    width, height = image.size
    if image.getexif().get(0x0112, 1) >= 5:
        width, height = height, width
    if max_resolution and max(width, height) > max_resolution:
        ratio = max_resolution / max(width, height)
        width, height = max(1, round(width * ratio)), max(1, round(height * ratio))
    return height, width


def to_rgb(image):
    """Any PIL image as upright 8-bit RGB: EXIF orientation applied, transparency laid on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float64)
        if image.mode != "F" or levels.max(initial=0) > 255:
            levels = levels / 257.0
        image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


_local = threading.local()


def _decodes(data, height, width):
    # The loader's own decoder judges: it refuses JPEGs that others read with a warning.
    if not hasattr(_local, "decoder"):
        _local.decoder = Decoder()
        _local.pixels = np.empty(0, np.uint8)
    if _local.pixels.size < height * width * 3 // 16:
        _local.pixels = np.empty(height * width * 3 // 16 + 3 * (height + width + 64), np.uint8)
    return test_jpeg(_local.decoder.handle, np.frombuffer(data, np.uint8), height, width, _local.pixels) == OK


def plain_jpeg(data):
    """(height, width) of a baseline JPEG with one or three components and no EXIF block, from its markers; else None.

    What this finds needs no look at the pixels; everything else is left to PIL.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 or marker == 0xEE or marker in range(0xC2, 0xC4) or marker in range(0xC5, 0xD0) or length < 2:
            return None  # EXIF or XMP, Adobe's colour transform, not baseline, or nonsense
        if marker in (0xC0, 0xC1):
            if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3):
                return None
            return int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        at += 2 + length
    return None


def encode(source, mode, max_resolution=None, quality=90):
    """Encode one image for a beton.

    source: a path, anything else with read_bytes(), encoded bytes, or uint8 pixels (H, W) or (H, W, 3). mode: "jpg" or "raw". A baseline JPEG that is
    upright, RGB or gray, no larger than `max_resolution` on its longer side and free of damage is stored byte for byte;
    all else is converted once, to baseline 4:2:0 of the given quality. Raises OSError or ValueError for an image that
    can't be read.
    """
    if mode == "jpg" and not isinstance(source, np.ndarray):
        source = _bytes(source)
        size = plain_jpeg(source)
        if size and min(size) > 0 and max(size) <= (max_resolution or MAX_SIDE) and _decodes(source, *size):
            return Encoded(JPG, *size, source)
    image, data = _open(source)
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"it is {width} x {height} pixels; a beton holds at most {MAX_SIDE} a side (use --max-resolution)"
        )
    fits = not max_resolution or max(width, height) <= max_resolution
    if (
        mode == "jpg"
        and fits
        and image.format == "JPEG"
        and image.mode in ("RGB", "L")
        and not image.info.get("progressive")
        and image.getexif().get(0x0112, 1) == 1
        and _decodes(data, height, width)
    ):
        return Encoded(JPG, height, width, data)
    image.load()
    image = to_rgb(image)
    if not fits:
        height, width = stored_size(source, max_resolution)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    width, height = image.size
    if MODES.index(mode) == RAW:
        return Encoded(RAW, height, width, image.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return Encoded(JPG, height, width, buffer.getvalue())
