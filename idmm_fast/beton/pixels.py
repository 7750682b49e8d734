"""Any image that PIL opens as upright 8-bit RGB. What is damaged or too large beside the pixels does not lose them."""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image

from ..limits import memory_bytes
from .format import MAX_PIXELS_PER_BYTE

Result = TypeVar("Result")

_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # of TIFF
_PNG = b"\x89PNG\r\n\x1a\n"
_BESIDE_PIXELS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG
_LARGE = 1 << 26  # pixels: what claims fewer is given the memory
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_lock, _unlimited, _limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
    """PIL's limit of pixels is off meanwhile, for all threads; `with_image` has a limit of its own, the memory."""
    global _unlimited, _limit
    with _lock:
        if not _unlimited:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _unlimited += 1
    try:
        yield
    finally:
        with _lock:
            _unlimited -= 1
            if not _unlimited:
                Image.MAX_IMAGE_PIXELS = _limit


def with_image(data: bytes, work: Callable[[Image.Image], Result]) -> Result:
    """What `work` makes of an image that PIL opens.

    A PNG whose text or colour profile PIL refuses is read without these.

    Args:
        data: the encoded image.
        work: is called with the image, which is not loaded; perhaps again, with another copy, when it has failed.

    Raises:
        OSError, ValueError, SyntaxError: PIL can't read it, or its pixels do not fit into memory.
    """
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if image.format == "JPEG" and width * height > max(MAX_PIXELS_PER_BYTE * len(data), _LARGE):
            raise ValueError(f"its {len(data):,} bytes can't hold the {width} x {height} pixels that it claims")
        if width * height * 4 > memory_bytes() // 2:
            raise ValueError(
                f"its {width} x {height} pixels take over half of the {memory_bytes() / 2**30:.1f} GB of memory"
            )
        return work(image)
    except _TOO_LARGE:
        with _without_limit():
            return with_image(data, work)
    except (OSError, ValueError, SyntaxError):
        rest = _without_text(data)
        if rest == data:
            raise
        return with_image(rest, work)


def _without_text(data: bytes) -> bytes:
    """A PNG without its chunks of text and its colour profile; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _BESIDE_PIXELS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation: 1 upright, 2 to 8 turned or mirrored; 1 where there is no such number."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL raises many kinds for damaged blocks
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def to_rgb(image: Image.Image, data: bytes = b"") -> Image.Image:
    """Any PIL image as upright 8-bit RGB.

    EXIF's orientation is applied, transparency laid on white, and levels of more than 8 bits are scaled by what the
    image holds, see `eight_bits`.

    Args:
        image: it.
        data: its encoded bytes. With them, colours of 16 bits of which only the lower ones are used are read whole: PIL
            keeps the upper 8.
    """
    deep_colour = bool(data) and ";16" in str(getattr(image, "tile", "")) and not is_deep(image)
    image.load()
    turn = _TURNS.get(orientation(image))
    if is_deep(image):
        image = Image.fromarray(eight_bits(np.asarray(image), _stated_bits(image)))
    elif deep_colour and _highest(image) < 128:
        image = _deep_colour(data) or image
    if turn is not None:
        image = image.transpose(turn)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether PIL has the image as levels of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _highest(image: Image.Image) -> int:
    """The highest level of all bands but alpha, of an 8-bit image."""
    levels = np.asarray(image)
    return int(levels[..., : levels.shape[2] - (image.mode[-1] in "Aa")].max()) if levels.ndim == 3 else 255


def _stated_bits(image: Image.Image) -> int:
    """How many bits a TIFF says that its levels have, where that is fewer than it stores; 0: it does not say."""
    tags = getattr(image, "tag_v2", {})
    try:
        bits, top = tags.get(_BITS_PER_SAMPLE, (0,))[0], tags.get(_MAX_SAMPLE_VALUE, (0,))[0]
    except Exception:  # damaged tags
        return 0
    return bits if 8 < bits < 16 else int(top).bit_length() if 0 < top < 1 << 16 else 0


def eight_bits(levels: np.ndarray, bits: int = 0) -> np.ndarray:
    """Levels of any depth as 8 bits.

    Whole numbers are scaled from `bits`, or from the fewest bits, 8 at least, that hold the highest one (of a mask, 0
    and 1: from one bit). Fractions up to 1 are scaled from 0..1, those up to 255 are levels already, others are treated
    as whole numbers. Where some are below 0, all are scaled from the lowest to the highest.

    Args:
        levels: (H, W) or (H, W, 3), whole numbers or floats; what is not finite counts as 0.
        bits: 1 to 16, of the highest level there could be; 0: not known.

    Returns:
        uint8 of the same shape.
    """
    fractions = levels.dtype.kind == "f"
    values = np.nan_to_num(levels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = min(0.0, float(values.min())), float(values.max())
    if low < 0:
        top = high if high > low else low + 1
    elif high <= 1:
        top = 1.0
    elif fractions and high <= 255:
        top = 255.0
    else:
        top = 2.0 ** max(8, int(high).bit_length(), bits) - 1
    return np.clip(np.rint((values - low) * 255 / (top - low)), 0, 255).astype(np.uint8)


def _deep_colour(data: bytes) -> Image.Image | None:
    """A colour image of 16 bits, scaled by what it holds; None if OpenCV can't read it either."""
    import cv2

    levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 3:
        return None
    colour = eight_bits(levels[..., 2::-1])
    if levels.shape[2] == 4:
        colour = np.dstack([colour, eight_bits(levels[..., 3])])
    return Image.fromarray(np.ascontiguousarray(colour))


def reason_of(error: Exception) -> str:
    """Why an image can't be read, in a few words."""
    reason = str(error) or type(error).__name__
    return "it is not an image that PIL can read" if reason.startswith("cannot identify image file") else reason
