"""RandAugment (Cubuk et al., arXiv 1909.13719) on float32 planes (3, S, S) of levels 0..255, in place.

The fifteen operations, their order and the meaning of their levels are timm's (timm.data.auto_augment, "rand" with
levels out of 10); the pixels are PIL's, with bilinear resampling. The published recipe of IDMM says "two of 15
operations, magnitude 1 to 9, each with probability 0.5" but not which fifteen.
"""

import math

import numpy as np

from ..jit import kernel
from .color import PROGRAM, adjust_brightness, adjust_contrast, adjust_saturation
from .philox import uniforms

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
(AUTO_CONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD, COLOR, CONTRAST, BRIGHTNESS, SHARPNESS, SHEAR_X,
 SHEAR_Y, TRANSLATE_X, TRANSLATE_Y) = range(15)  # fmt: skip
FILL = (124.0, 116.0, 104.0)  # what comes in from beyond the edge: the mean colour of ImageNet
_BLOCK = 24  # of the counter


@kernel
def draw_operation(seed, epoch, row, stream, k):
    """Operation number `k` of a view: (which, or -1 for none; its argument in the operation's own unit)."""
    u = uniforms(seed, row, epoch, stream, _BLOCK + k)
    which = min(int(u[0] * 15), 14)
    if u[1] >= 0.5:
        return -1, 0.0
    level = 1 + min(int(u[2] * 9), 8)
    sign = -1.0 if u[3] < 0.5 else 1.0
    return which, argument(which, level, sign)


@kernel
def argument(which, level, sign):
    """timm's level_to_arg: what a level of 1..10 means to an operation."""
    if which == ROTATE:
        return sign * level / 10 * 30.0
    if which == POSTERIZE:
        return float(int(level / 10 * 4))
    if which == SOLARIZE:
        return float(min(256, int(level / 10 * 256)))
    if which == SOLARIZE_ADD:
        return float(min(128, int(level / 10 * 110)))
    if COLOR <= which <= SHARPNESS:
        return level / 10 * 1.8 + 0.1
    if which == SHEAR_X or which == SHEAR_Y:
        return sign * level / 10 * 0.3
    if which == TRANSLATE_X or which == TRANSLATE_Y:
        return sign * level / 10 * 0.45
    return 0.0


@kernel
def round_levels(planes):
    """To whole levels, as PIL holds them."""
    flat = planes.reshape(-1)
    for k in range(flat.size):
        flat[k] = np.float32(min(max(math.floor(flat[k] + np.float32(0.5)), 0), 255))


@kernel
def _apply_table(plane, table):
    flat = plane.reshape(-1)
    for k in range(flat.size):
        flat[k] = table[int(flat[k])]


@kernel
def _auto_contrast(planes):
    table = np.empty(256, np.float32)
    for c in range(3):
        low, high = planes[c].min(), planes[c].max()
        if high > low:
            scale = 255.0 / (high - low)
            for i in range(256):
                table[i] = min(max(int(i * scale - low * scale), 0), 255)
            _apply_table(planes[c], table)


@kernel
def _equalize(planes):
    table = np.empty(256, np.float32)
    for c in range(3):
        counts = np.zeros(256, np.int64)
        flat = planes[c].reshape(-1)
        for k in range(flat.size):
            counts[int(flat[k])] += 1
        last = 255
        while counts[last] == 0:
            last -= 1
        step = (flat.size - counts[last]) // 255
        if step == 0:
            continue
        n = step // 2
        for i in range(256):
            table[i] = min(n // step, 255)
            n += counts[i]
        _apply_table(planes[c], table)


@kernel
def _sharpness(planes, factor, line):
    size = planes.shape[1]
    old = line[: size * size].reshape(size, size)
    factor = np.float32(factor)
    for c in range(3):
        old[:] = planes[c]
        for y in range(1, size - 1):
            for x in range(1, size - 1):
                around = old[y - 1, x - 1] + old[y - 1, x] + old[y - 1, x + 1] + old[y, x - 1] + old[y, x + 1]
                around += old[y + 1, x - 1] + old[y + 1, x] + old[y + 1, x + 1]
                smooth = math.floor((around + np.float32(5) * old[y, x]) / np.float32(13) + np.float32(0.5))
                planes[c, y, x] = smooth + factor * (old[y, x] - smooth)


@kernel
def _affine(planes, a, b, c, d, e, f, line):
    """Output pixel (x, y) comes from (a x + b y + c, d x + e y + f), in pixel centres; PIL's transform, bilinear."""
    size = planes.shape[1]
    old = line[: size * size].reshape(size, size)
    for channel in range(3):
        old[:] = planes[channel]
        fill = np.float32(FILL[channel])
        for y in range(size):
            for x in range(size):
                u = a * (x + 0.5) + b * (y + 0.5) + c
                v = d * (x + 0.5) + e * (y + 0.5) + f
                if u < 0 or u >= size or v < 0 or v >= size:
                    planes[channel, y, x] = fill
                    continue
                u -= 0.5
                v -= 0.5
                x0, y0 = int(math.floor(u)), int(math.floor(v))
                du, dv = u - x0, v - y0
                left, right = max(x0, 0), min(x0 + 1, size - 1)
                above, below = max(y0, 0), min(y0 + 1, size - 1)
                top = old[above, left] * (1 - du) + old[above, right] * du
                bottom = old[below, left] * (1 - du) + old[below, right] * du
                planes[channel, y, x] = top * (1 - dv) + bottom * dv


@kernel
def apply_operation(planes, which, arg, line):
    """One operation with its argument (see `argument`). `line` is scratch: float32, at least S * S."""
    size = planes.shape[1]
    flat = planes.reshape(-1)
    program = line[:PROGRAM]
    round_levels(planes)
    if which == AUTO_CONTRAST:
        _auto_contrast(planes)
    elif which == EQUALIZE:
        _equalize(planes)
    elif which == INVERT:
        for k in range(flat.size):
            flat[k] = np.float32(255) - flat[k]
    elif which == POSTERIZE:
        unit = 1 << (8 - int(arg))
        for k in range(flat.size):
            flat[k] = np.float32(int(flat[k]) // unit * unit)
    elif which == SOLARIZE:
        for k in range(flat.size):
            flat[k] = flat[k] if flat[k] < arg else np.float32(255) - flat[k]
    elif which == SOLARIZE_ADD:
        for k in range(flat.size):
            flat[k] = min(flat[k] + np.float32(arg), np.float32(255)) if flat[k] < 128 else flat[k]
    elif which == COLOR:
        adjust_saturation(planes, arg, program)
    elif which == CONTRAST:
        adjust_contrast(planes, arg, program)
    elif which == BRIGHTNESS:
        adjust_brightness(planes, arg, program)
    elif which == SHARPNESS:
        _sharpness(planes, arg, line)
    elif which == ROTATE:
        angle, half = -math.radians(arg), size / 2
        cos, sin = math.cos(angle), math.sin(angle)
        _affine(planes, cos, sin, half - cos * half - sin * half, -sin, cos, half + sin * half - cos * half, line)
    elif which == SHEAR_X:
        _affine(planes, 1.0, arg, 0.0, 0.0, 1.0, 0.0, line)
    elif which == SHEAR_Y:
        _affine(planes, 1.0, 0.0, 0.0, arg, 1.0, 0.0, line)
    elif which == TRANSLATE_X:
        _affine(planes, 1.0, 0.0, arg * size, 0.0, 1.0, 0.0, line)
    elif which == TRANSLATE_Y:
        _affine(planes, 1.0, 0.0, 0.0, 0.0, 1.0, arg * size, line)
    round_levels(planes)
