"""From what a dataset holds (a file, bytes, pixels) to what a beton holds: a JPEG every decoder reads, or raw RGB."""

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..kernels.resize import resized
from ..limits import memory_bytes
from .checksum import checksum
from .format import JPG, MAX_PAGE, MAX_PIXELS_PER_BYTE, MODES, RAW
from .jpeg import OK, Decoder, Encoder, decode_jpeg, test_jpeg
from .jpeg_check import APP1, APP14, DHT, DQT, EOI, SOF0, SOF1, SOS, is_intact
from .pixels import is_deep, orientation, to_rgb, with_image

RAW_SHARE = 0.125  # of the machine's memory
MAX_SIDE = 65535  # the table's width and height are 16 bits
MAX_JPEG_SIDE = 65500  # of libjpeg-turbo's encoder


@dataclass(frozen=True)
class Encoded:
    """One image as stored.

    Attributes:
        mode: format.JPG or format.RAW.
        height: pixels.
        width: pixels.
        data: the bytes.
        change: what was done to the image beyond what its format asks for, for the account; "": nothing.
    """

    mode: int
    height: int
    width: int
    data: bytes
    change: str = ""

    @cached_property
    def sum(self) -> int:
        """The checksum of the bytes."""
        return checksum(np.frombuffer(self.data, np.uint8))


def describe(source: Any) -> str:
    """What to call `source` in a message: its path, or what it is."""
    return (
        f"an image held in memory ({type(source).__name__})" if isinstance(source, bytes | np.ndarray) else str(source)
    )


def _bytes(source: Any) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        with open(source, "rb", buffering=0) as file:
            return file.readall()
    return source.read_bytes()


def stored_size(source: Any, max_resolution: int | None = None) -> tuple[int, int]:
    """(height, width) of `source` as it will be stored, in pixels, from its header alone; see `encode`."""
    if isinstance(source, np.ndarray):
        return _limited(source.shape[0], source.shape[1], max_resolution)
    width, height, turn = with_image(_bytes(source), lambda image: (*image.size, orientation(image)))
    return _limited(*((width, height) if turn >= 5 else (height, width)), max_resolution)


def choose_mode(images: Iterable[Any], max_resolution: int | None = None) -> str:
    """Mode auto: "raw" where all pixels fit RAW_SHARE of the machine's memory, else "jpg". See `encode`."""
    most, total = RAW_SHARE * memory_bytes(), 0
    for source in images:
        try:
            height, width = stored_size(source, max_resolution)
        except Exception:  # PIL raises many kinds
            continue  # a bad image is reported when it is converted
        total += height * width * 3
        if total > most:
            return "jpg"
    return "raw"


class _Tools:
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.decoder, self.encoder, self._pixels = Decoder(), Encoder(), np.empty(0, np.uint8)

    def space(self, size: int) -> np.ndarray:
        """uint8, at least `size` of them; what a thread was given before is overwritten."""
        if self._pixels.size < size:
            self._pixels = np.empty(size, np.uint8)
        return self._pixels


_local = threading.local()


def _tools() -> _Tools:
    if not hasattr(_local, "tools"):
        _local.tools = _Tools()
    return _local.tools


_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)


def has_its_tables(data: bytes) -> bool:
    """Whether a sequential JPEG brings the tables that it needs.

    A decoder that has read other images before goes on with their tables, silently.
    """
    quantisation_of: dict[int, int] = {}  # component: its table
    tables_seen: set[tuple[str, int | None]] = set()
    at = 2
    while found := _MARKER.search(data, at):
        marker, start = found[1][0], found.end()
        at = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        body = data[start + 2 : at]
        if marker == DQT:
            while body:
                tables_seen.add(("quantisation", body[0] & 15))
                body = body[129 if body[0] >> 4 else 65 :]
        elif marker == DHT:
            while len(body) > 16:
                tables_seen.add(("Huffman", body[0]))  # 0..3: of DC coefficients, 16..19: of AC coefficients
                body = body[17 + sum(body[1:17]) :]
        elif marker in (SOF0, SOF1):
            quantisation_of = dict(zip(body[6::3], body[8::3]))
            if len(quantisation_of) != len(body[8::3]):
                return False
        elif marker == SOS:
            scan = dict(zip(body[1:-3:2], body[2:-3:2]))
            for component, tables in scan.items():
                quantisation = ("quantisation", quantisation_of.get(component))
                if not {quantisation, ("Huffman", tables >> 4), ("Huffman", 16 + (tables & 15))} <= tables_seen:
                    return False
            if len(scan) == len(quantisation_of):
                return True
        elif marker == EOI:
            return True
    return False


def _decodes(data: bytes, height: int, width: int) -> bool:
    contents = np.frombuffer(data, np.uint8)
    if is_intact(contents):
        return True
    # The loader's own decoder decides: it refuses JPEGs that others read with a warning.
    if not has_its_tables(data):
        return False
    pixels = _tools().space(3 * ((height + 7) // 8) * ((width + 7) // 8))
    return test_jpeg(_tools().decoder.handle, contents, height, width, pixels) == OK


def _pixels(data: bytes, height: int, width: int) -> np.ndarray | None:
    """uint8 (H, W, 3) of a plain JPEG, valid until the thread's next call; None if it is damaged."""
    if not has_its_tables(data):
        return None
    pixels = _tools().space(3 * height * width)
    if decode_jpeg(_tools().decoder.handle, np.frombuffer(data, np.uint8), height, width, pixels) != OK:
        return None
    return pixels[: 3 * height * width].reshape(height, width, 3)


def _shrink(pixels: np.ndarray, max_resolution: int | None) -> np.ndarray:
    """The longer side no longer than `max_resolution`; bilinear and antialiased."""
    height, width = _limited(pixels.shape[0], pixels.shape[1], max_resolution)
    if (height, width) == pixels.shape[:2]:
        return pixels
    if min(height, width) < 8:  # too small for the kernel's vectors
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    return resized(np.ascontiguousarray(pixels), height, width)


def _limited(height: int, width: int, max_resolution: int | None) -> tuple[int, int]:
    if not max_resolution or max(width, height) <= max_resolution:
        return height, width
    ratio = max_resolution / max(width, height)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _finish(pixels: np.ndarray, mode: str, quality: int) -> Encoded:
    """`pixels` (uint8 (H, W, 3)) as stored: raw, or a baseline JPEG with chroma at half the resolution.

    What is too long for the JPEG encoder is stored raw among JPEGs.
    """
    height, width = pixels.shape[:2]
    if MODES.index(mode) == RAW or max(height, width) > MAX_JPEG_SIDE:
        if pixels.nbytes > MAX_PAGE:
            raise ValueError(
                f"its {width} x {height} pixels take {pixels.nbytes / 2**30:.1f} GB, and a beton holds at most 2 GB an "
                f"image (use --max-resolution or --mode jpg)"
            )
        return Encoded(RAW, height, width, pixels.tobytes())
    return Encoded(JPG, height, width, _tools().encoder.encode(np.ascontiguousarray(pixels), quality))


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a baseline JPEG with one or three components and no EXIF block, from its markers; else None.

    What this finds needs no look at the pixels; everything else is left to PIL. `jpeg_check.is_intact` and the decoder
    check the rest.
    """
    if data[:2] != b"\xff\xd8":
        return None
    size, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SOS:  # up to here there may be EXIF, also after the frame's header
            return size if size and 0 < size[0] * size[1] <= MAX_PIXELS_PER_BYTE * len(data) else None
        not_baseline = 0xC2 <= marker <= 0xCF and marker != DHT
        if marker in (APP1, APP14) or not_baseline or length < 2:
            return None  # EXIF or XMP, Adobe's colour transform, not baseline, or nonsense
        if marker in (SOF0, SOF1):
            body = data[at + 4 : at + 2 + length]
            if size or len(body) < 6 or body[0] != 8 or body[5] not in (1, 3):
                return None
            size = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        at += 2 + length
    return None


def encode(source: Any, mode: str, max_resolution: int | None = None, quality: int = 90) -> Encoded:
    """Encode one image for a beton.

    A baseline JPEG that is upright, RGB or gray, no larger than `max_resolution` and read by libjpeg-turbo without a
    warning is stored byte for byte. All else is converted once: to RGB, then to raw pixels or to a baseline 4:2:0 JPEG.

    Args:
        source: a path, anything else with read_bytes(), encoded bytes, or uint8 pixels (H, W) or (H, W, 3).
        mode: "jpg" or "raw".
        max_resolution: of the longer side, pixels; larger images are shrunk. None: any.
        quality: 1..100, of a JPEG that has to be encoded.

    Raises:
        OSError: the image can't be read.
        ValueError: the image can't be read, or does not fit a beton.
    """
    if not isinstance(source, np.ndarray):
        source = _bytes(source)
        size = plain_jpeg(source)
        if size:
            if mode == "jpg" and max(size) <= (max_resolution or MAX_SIDE):
                if _decodes(source, *size):
                    return Encoded(JPG, *size, source)
            elif (pixels := _pixels(source, *size)) is not None:
                return _finish(_shrink(pixels, max_resolution), mode, quality)
    if isinstance(source, np.ndarray):
        return _finish(_shrink(np.asarray(to_rgb(Image.fromarray(source))), max_resolution), mode, quality)
    data: bytes = source
    return with_image(data, lambda image: _encode_by_pil(image, data, mode, max_resolution, quality))


def _encode_by_pil(image: Image.Image, data: bytes, mode: str, max_resolution: int | None, quality: int) -> Encoded:
    """`encode` for what PIL has opened, not loaded."""
    width, height = image.size
    if max(_limited(height, width, max_resolution)) > MAX_SIDE:
        raise ValueError(
            f"it is {width} x {height} pixels; a beton holds at most {MAX_SIDE} a side (use --max-resolution)"
        )
    if (
        mode == "jpg"
        and (not max_resolution or max(width, height) <= max_resolution)
        and image.format in ("JPEG", "MPO")  # MPO: a JPEG with others behind it
        and image.mode in ("RGB", "L")
        and not image.info.get("progressive")
        and orientation(image) == 1
        and height * width <= MAX_PIXELS_PER_BYTE * len(data)
        and _decodes(data, height, width)
    ):
        return Encoded(JPG, height, width, data)
    change = "of over 8 bits a level, each scaled by what it holds" if is_deep(image) else ""
    stored = _finish(_shrink(np.asarray(to_rgb(image, data)), max_resolution), mode, quality)
    return replace(stored, change=change)


def read_rgb(source: Any) -> np.ndarray:
    """The pixels of an image, those that a beton of mode raw holds of it.

    Args:
        source: as of `encode`.

    Returns:
        uint8 (H, W, 3).

    Raises:
        OSError, ValueError: the image can't be read.
    """
    stored = encode(source, "raw")
    return np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
