"""Decoding JPEG from inside a kernel, and encoding it, with the libjpeg-turbo that FFCV was built with.

FFCV's own binding is a ctypes pointer, which numba can't cache, and it drops the decoder's return code: a corrupt image
leaves the pixels of another one behind. Named external functions are cacheable, and here every code is checked.
"""

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding
from numba import types

from ..kernels.jit import kernel

# Found, not imported: importing FFCV imports torch and changes its thread count. And loaded for these functions alone:
# made global, it would bring OpenCV's needs along, among them a plain BLAS that replaces torch's own and is ten times
# slower.
_spec: Any = find_spec("ffcv")
_path = next(Path(_spec.submodule_search_locations[0]).glob("_libffcv*.so"))
_library = ctypes.CDLL(str(_path), mode=ctypes.RTLD_LOCAL)
for _name in ("tjInitDecompress", "tjDestroy", "tjDecompressHeader3", "tjDecompress2"):
    binding.add_symbol(_name, ctypes.cast(getattr(_library, _name), ctypes.c_void_p).value)

_int, _ptr, _ulong = types.int32, types.intp, types.uint64
_init = types.ExternalFunction("tjInitDecompress", _ptr())
_destroy = types.ExternalFunction("tjDestroy", _int(_ptr))
_header = types.ExternalFunction("tjDecompressHeader3", _int(_ptr, _ptr, _ulong, _ptr, _ptr, _ptr, _ptr))
_decompress = types.ExternalFunction("tjDecompress2", _int(_ptr, _ptr, _ulong, _ptr, _int, _int, _int, _int, _int))

_TJPF_RGB = 0
_TJSAMP_420 = 2
_TJFLAG_NOREALLOC, _TJFLAG_ACCURATEDCT = 1024, 4096

_library.tjInitCompress.restype = ctypes.c_void_p
_library.tjBufSize.restype = ctypes.c_ulong
_library.tjCompress2.argtypes = [
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_ulong),
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
]

OK, NOT_A_JPEG, WRONG_SIZE, CORRUPT, ALTERED = range(5)
MESSAGES = {
    NOT_A_JPEG: "its bytes are not a JPEG",
    WRONG_SIZE: "the JPEG's own width and height are not those of the beton's table",
    CORRUPT: "the JPEG is damaged or cut short",
    ALTERED: "its bytes are not those that were written",
}


@kernel
def _open():
    return _init()


@kernel
def _close(handle):
    return _destroy(handle)


class Decoder:
    """A libjpeg-turbo decompressor, one a thread; `handle` (int) is what `decode_jpeg` takes."""

    def __init__(self) -> None:
        self.handle = _open()

    def __del__(self, ended=sys.is_finalizing):  # at the end of the process there is no `sys` any more
        if not ended():
            _close(self.handle)


@kernel
def _decode(handle, data, height, width, out_height, out_width, out):
    """Decode at a size that libjpeg-turbo can scale to; `height` and `width` are those that the header must have."""
    shape = np.empty(4, dtype=np.int32)
    at = shape.ctypes.data
    if _header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12) != 0:
        # libjpeg-turbo 2.1 leaves a handle amid a header that it could not read, and the handle reads nothing any more.
        # Decompressing sets it back when it fails, as it must with one byte.
        _decompress(handle, data.ctypes.data, 1, out.ctypes.data, 1, 0, 1, _TJPF_RGB, 0)
        return NOT_A_JPEG
    if shape[0] != width or shape[1] != height:
        return WRONG_SIZE
    if (
        _decompress(
            handle,
            data.ctypes.data,
            data.size,
            out.ctypes.data,
            out_width,
            0,
            out_height,
            _TJPF_RGB,
            _TJFLAG_ACCURATEDCT,
        )
        != 0
    ):
        return CORRUPT
    return OK


@kernel
def decode_jpeg(handle: int, data: np.ndarray, height: int, width: int, out: np.ndarray) -> int:
    """Decode a JPEG to RGB.

    The JPEG's own header is compared with the expected size first, so that `out` can't be overrun.

    Args:
        handle: of a Decoder.
        data: uint8, 1-d, the JPEG.
        height: expected, pixels.
        width: expected, pixels.
        out: uint8, 1-d, at least height * width * 3; filled.

    Returns:
        OK, NOT_A_JPEG, WRONG_SIZE or CORRUPT.
    """
    return _decode(handle, data, height, width, height, width, out)


@kernel
def test_jpeg(handle: int, data: np.ndarray, height: int, width: int, out: np.ndarray) -> int:
    """The code that `decode_jpeg` would return, in two thirds of its time.

    Every bit is read, but the pixels are made at an eighth of the size.
    """
    return _decode(handle, data, height, width, (height + 7) // 8, (width + 7) // 8, out)


class Encoder:
    """A libjpeg-turbo compressor, one a thread."""

    def __init__(self) -> None:
        self._handle, self._space = ctypes.c_void_p(_library.tjInitCompress()), np.empty(0, np.uint8)

    def __del__(self, ended=sys.is_finalizing):  # at the end of the process there is no `sys` any more
        if not ended():
            _library.tjDestroy(self._handle)

    def encode(self, pixels: np.ndarray, quality: int) -> bytes:
        """Encode a baseline JPEG with chroma at half the resolution (4:2:0).

        Args:
            pixels: uint8 (H, W, 3), contiguous.
            quality: 1..100.

        Raises:
            ValueError: libjpeg-turbo can't encode these pixels.
        """
        height, width = pixels.shape[:2]
        most = _library.tjBufSize(width, height, _TJSAMP_420)
        if self._space.size < most:
            self._space = np.empty(most, np.uint8)
        out, size = ctypes.c_void_p(self._space.ctypes.data), ctypes.c_ulong(most)
        code = _library.tjCompress2(
            self._handle,
            pixels.ctypes.data,
            width,
            3 * width,
            height,
            _TJPF_RGB,
            ctypes.byref(out),
            ctypes.byref(size),
            _TJSAMP_420,
            quality,
            _TJFLAG_NOREALLOC | _TJFLAG_ACCURATEDCT,
        )
        if code:
            raise ValueError(f"libjpeg-turbo could not encode {width} x {height} pixels")
        return self._space[: size.value].tobytes()
