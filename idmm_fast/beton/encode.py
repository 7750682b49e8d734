"""From what a dataset holds (a file, bytes, pixels) to what a beton holds: a JPEG every decoder reads, or raw RGB."""

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .format import JPG, MODES, RAW
from .jpeg import OK, Decoder, decode_jpeg

MAX_SIDE = 65535  # the table's width and height are 16 bits


@dataclass(frozen=True)
class Encoded:
    """One image as stored: FFCV's write mode, size in pixels, and its bytes."""

    mode: int
    height: int
    width: int
    data: bytes


def describe(source):
    """What to call `source` in a message: its path, or what it is."""
    return str(source) if isinstance(source, Path | str) else f"an image held in memory ({type(source).__name__})"


def _open(source):
    if isinstance(source, np.ndarray):
        return Image.fromarray(source), b""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
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
    if _local.pixels.size < height * width * 3:
        _local.pixels = np.empty(height * width * 3, np.uint8)
    return decode_jpeg(_local.decoder.handle, np.frombuffer(data, np.uint8), height, width, _local.pixels) == OK


def encode(source, mode, max_resolution=None, quality=90):
    """Encode one image for a beton.

    source: a path, encoded bytes, or uint8 pixels (H, W) or (H, W, 3). mode: "jpg" or "raw". A baseline JPEG that is
    upright, RGB or gray, no larger than `max_resolution` on its longer side and free of damage is stored byte for byte;
    all else is converted once, to baseline 4:2:0 of the given quality. Raises OSError or ValueError for an image that
    can't be read.
    """
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
