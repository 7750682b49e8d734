"""RandAugment as the authors of IDMM fine-tune with it, on float32 planes (3, S, S) of levels 0..255, in place.

The fifteen operations, their strengths and their resampling are those of the released code (RandAugment and SubPolicy
in utils/data_utils.py), the pixels are PIL's. Level k = 1..9 is the index into a grid of ten from no effect to the
full one; timm's RandAugment shares most names, not the strengths, and has SolarizeAdd where this has Cutout.
"""

import math

import numpy as np

from .color import PROGRAM, adjust_brightness, adjust_contrast, adjust_saturation
from .jit import kernel
from .philox import uniforms

OPERATIONS = (
    "Invert",
    "Cutout",
    "Sharpness",
    "AutoContrast",
    "Posterize",
    "ShearX",
    "TranslateX",
    "TranslateY",
    "ShearY",
    "Rotate",
    "Equalize",
    "Contrast",
    "Color",
    "Solarize",
    "Brightness",
)
(
    INVERT,
    CUTOUT,
    SHARPNESS,
    AUTO_CONTRAST,
    POSTERIZE,
    SHEAR_X,
    TRANSLATE_X,
    TRANSLATE_Y,
    SHEAR_Y,
    ROTATE,
    EQUALIZE,
    CONTRAST,
    COLOR,
    SOLARIZE,
    BRIGHTNESS,
) = range(15)
FILL = 128.0  # what comes in from beyond the edge
CUTOUT_COLOR = (125.0, 122.0, 113.0)
_BLOCK = 24  # of the counter: what and how strong; where to cut out is drawn two blocks further


@kernel
def sample_operation(seed, epoch, row, stream, k, flipped):
    """Operation number `k` of a view: (which, or -1 for none; its argument, see `argument`; centre of a cutout, x and y as shares of the side).

    flipped: whether the view was flipped before. The authors flip last and always turn counter-clockwise, so a flipped view
    is turned clockwise here. The other operations that have a direction take either with the same probability.
    """
    u = uniforms(seed, row, epoch, stream, _BLOCK + k)
    which = min(int(u[0] * 15), 14)
    if u[1] >= 0.5:
        return -1, 0.0, 0.0, 0.0
    level = 1 + min(int(u[2] * 9), 8)
    sign = -1.0 if u[3] < 0.5 else 1.0
    if which == ROTATE:
        sign = -1.0 if flipped else 1.0
    place = uniforms(seed, row, epoch, stream, _BLOCK + 2 + k)
    return which, argument(which, level, sign), place[0], place[1]


@kernel
def argument(which, level, sign):
    """What a level of 1..9 means to an operation: a factor, degrees counter-clockwise, bits, a threshold, pixels (Cutout), a slope or a share of
    the side; 0.0 where there is no level. `sign` is 1.0 or -1.0."""
    share = level / 9
    if which == CUTOUT:
        return np.rint(share * 20.0)
    if which == POSTERIZE:
        return np.rint(8.0 - share * 4.0)
    if which == SOLARIZE:
        return 256.0 - share * 256.0
    if which == ROTATE:
        return sign * share * 30.0
    if which == SHEAR_X or which == SHEAR_Y:
        return sign * share * 0.3
    if which == TRANSLATE_X or which == TRANSLATE_Y:
        return sign * share * (150.0 / 331.0)
    if which == SHARPNESS or which == CONTRAST or which == COLOR or which == BRIGHTNESS:
        return 1.0 + sign * share * 0.9
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
def _nearest(planes, a, b, c, d, e, f, line):
    """Output pixel (x, y) comes from (a x + b y + c, d x + e y + f), in pixel centres; PIL's transform with NEAREST, which counts in 65536ths."""
    size = planes.shape[1]
    old = line[: size * size].reshape(size, size)
    right, right_down = math.floor(a * 65536 + 0.5), math.floor(d * 65536 + 0.5)
    down_right, down = math.floor(b * 65536 + 0.5), math.floor(e * 65536 + 0.5)
    first_u = math.floor((c + 0.5 * a + 0.5 * b) * 65536 + 0.5)
    first_v = math.floor((f + 0.5 * d + 0.5 * e) * 65536 + 0.5)
    for channel in range(3):
        old[:] = planes[channel]
        for y in range(size):
            for x in range(size):
                u = (first_u + x * right + y * down_right) >> 16
                v = (first_v + x * right_down + y * down) >> 16
                inside = 0 <= u < size and 0 <= v < size
                planes[channel, y, x] = old[v, u] if inside else np.float32(FILL)


@kernel
def _shear(planes, slope, along, across, line):
    """Position j of line i comes from position j + slope * i of the same line, in pixel centres; PIL's transform with BICUBIC (a = -1, cut to an integer).

    along, across: from a position to the next, and from a line to the next, in a flat plane.
    """
    size = planes.shape[1]
    old = line[: size * size]
    for channel in range(3):
        new = planes[channel].reshape(-1)
        old[:] = new
        for i in range(size):
            for j in range(size):
                at = j + 0.5 + slope * (i + 0.5)
                if at < 0 or at >= size:
                    new[i * across + j * along] = np.float32(FILL)
                    continue
                at -= 0.5
                k = math.floor(at)
                t = at - k
                p0 = float(old[i * across + max(k - 1, 0) * along])
                p1 = float(old[i * across + max(k, 0) * along])
                p2 = float(old[i * across + min(k + 1, size - 1) * along])
                p3 = float(old[i * across + min(k + 2, size - 1) * along])
                value = p1 + t * (p2 - p0 + t * (2 * (p0 - p1) + p2 - p3 + t * (p1 - p0 + p3 - p2)))
                new[i * across + j * along] = math.floor(min(max(value, 0.0), 255.0))


@kernel
def _cutout(planes, half, x, y):
    size = planes.shape[1]
    for c in range(3):
        for i in range(max(0, y - half), min(size, y + half)):
            for j in range(max(0, x - half), min(size, x + half)):
                planes[c, i, j] = np.float32(CUTOUT_COLOR[c])


@kernel
def apply_operation(planes, which, arg, x, y, line):
    """One operation with its argument (see `argument`); (x, y), shares of the side, is where Cutout cuts. `line` is scratch: float32, at least S * S."""
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
    elif which == CUTOUT:
        _cutout(planes, int(arg) // 2, min(int(x * size), size - 1), min(int(y * size), size - 1))
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
        _nearest(planes, cos, sin, half - cos * half - sin * half, -sin, cos, half + sin * half - cos * half, line)
    elif which == SHEAR_X:
        _shear(planes, arg, 1, size, line)
    elif which == SHEAR_Y:
        _shear(planes, arg, size, 1, line)
    elif which == TRANSLATE_X:
        _nearest(planes, 1.0, 0.0, arg * size, 0.0, 1.0, 0.0, line)
    elif which == TRANSLATE_Y:
        _nearest(planes, 1.0, 0.0, 0.0, 0.0, 1.0, arg * size, line)
    round_levels(planes)
