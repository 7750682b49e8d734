"""RandAugment as the authors of IDMM fine-tune with it, on float32 planes (3, S, S) of levels 0..255, in place.

The fifteen operations, their strengths and their resampling are those of the released code (RandAugment and SubPolicy
in utils/data_utils.py), the pixels are PIL's. Level k = 1..9 is the index into a grid of ten, from no effect to the
full one. timm's RandAugment shares most names, not the strengths, and has SolarizeAdd where this has Cutout.
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
_BLOCK = 24  # of the counter: which operation and how strong; a cutout's centre is two blocks further


@kernel
def sample_operation(seed, epoch, row, stream, k, flipped):
    """Sample one operation of a crop.

    The authors flip last and always rotate counter-clockwise, so a flipped crop is rotated clockwise here. The other
    operations that have a direction take either with the same probability; for ShearY see `apply_operation`.

    Args:
        seed: uint64.
        epoch: counter.
        row: of the dataset.
        stream: number of the crop.
        k: which of the operations of the crop, 0 or 1.
        flipped: whether the crop is flipped.

    Returns:
        (operation, or -1 for none; its argument, see `level_to_arg`; x and y of a cutout's centre, fractions of the
        side).
    """
    u = uniforms(seed, row, epoch, stream, _BLOCK + k)
    operation = min(int(u[0] * 15), 14)
    if u[1] >= 0.5:
        return -1, 0.0, 0.0, 0.0
    level = 1 + min(int(u[2] * 9), 8)
    sign = -1.0 if u[3] < 0.5 else 1.0
    if operation == ROTATE:
        sign = -1.0 if flipped else 1.0
    centre = uniforms(seed, row, epoch, stream, _BLOCK + 2 + k)
    return operation, level_to_arg(operation, level, sign), centre[0], centre[1]


@kernel
def level_to_arg(operation, level, sign):
    """What a level means to an operation.

    Args:
        operation: INVERT .. BRIGHTNESS.
        level: 1..9.
        sign: 1.0 or -1.0, the direction.

    Returns:
        A factor, degrees counter-clockwise, bits, a threshold, pixels (Cutout), a slope, or a fraction of the side; 0.0
        where there is no level.
    """
    strength = level / 9
    if operation == CUTOUT:
        return np.rint(strength * 20.0)
    if operation == POSTERIZE:
        return np.rint(8.0 - strength * 4.0)
    if operation == SOLARIZE:
        return 256.0 - strength * 256.0
    if operation == ROTATE:
        return sign * strength * 30.0
    if operation == SHEAR_X or operation == SHEAR_Y:
        return sign * strength * 0.3
    if operation == TRANSLATE_X or operation == TRANSLATE_Y:
        return sign * strength * (150.0 / 331.0)
    if operation == SHARPNESS or operation == CONTRAST or operation == COLOR or operation == BRIGHTNESS:
        return 1.0 + sign * strength * 0.9
    return 0.0


@kernel
def round_levels(planes):
    """Round `planes` to whole levels, as PIL holds them, halves up."""
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
def _sharpness(planes, factor, scratch):
    size = planes.shape[1]
    old = scratch[: size * size].reshape(size, size)
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
def _nearest(planes, a, b, c, d, e, f, scratch):
    """PIL's transform with NEAREST: output pixel (x, y) comes from (a x + b y + c, d x + e y + f).

    It counts in 65536ths of a pixel.
    """
    size = planes.shape[1]
    old = scratch[: size * size].reshape(size, size)
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
def _shear(planes, slope, still, along, across, scratch):
    """Position j of line i comes from position j + slope * (i - still) of that line: PIL's transform, BICUBIC (a = -1).

    Coordinates are those of pixel centres. In a flat plane a position is `along` from the next, a line `across` from
    the next.
    """
    size = planes.shape[1]
    old = scratch[: size * size]
    for channel in range(3):
        new = planes[channel].reshape(-1)
        old[:] = new
        for i in range(size):
            for j in range(size):
                at = j + 0.5 + slope * (i + 0.5 - still)
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
def apply_operation(planes, operation, arg, x, y, flipped, scratch):
    """Apply one operation in place; the result has whole levels.

    Args:
        planes: float32 (3, S, S), levels 0..255.
        operation: INVERT .. BRIGHTNESS.
        arg: its argument, see `level_to_arg`.
        x: of a cutout's centre, a fraction of the side.
        y: of a cutout's centre, a fraction of the side.
        flipped: whether the planes are mirrored already. ShearY leaves the edge in place that was the left one.
        scratch: float32, at least S * S.
    """
    size = planes.shape[1]
    flat = planes.reshape(-1)
    program = scratch[:PROGRAM]
    round_levels(planes)
    if operation == AUTO_CONTRAST:
        _auto_contrast(planes)
    elif operation == EQUALIZE:
        _equalize(planes)
    elif operation == INVERT:
        for k in range(flat.size):
            flat[k] = np.float32(255) - flat[k]
    elif operation == POSTERIZE:
        unit = 1 << (8 - int(arg))
        for k in range(flat.size):
            flat[k] = np.float32(int(flat[k]) // unit * unit)
    elif operation == SOLARIZE:
        for k in range(flat.size):
            flat[k] = flat[k] if flat[k] < arg else np.float32(255) - flat[k]
    elif operation == CUTOUT:
        _cutout(planes, int(arg) // 2, min(int(x * size), size - 1), min(int(y * size), size - 1))
    elif operation == COLOR:
        adjust_saturation(planes, arg, program)
    elif operation == CONTRAST:
        adjust_contrast(planes, arg, program)
    elif operation == BRIGHTNESS:
        adjust_brightness(planes, arg, program)
    elif operation == SHARPNESS:
        _sharpness(planes, arg, scratch)
    elif operation == ROTATE:
        angle, half = -math.radians(arg), size / 2
        cos, sin = math.cos(angle), math.sin(angle)
        _nearest(planes, cos, sin, half - cos * half - sin * half, -sin, cos, half + sin * half - cos * half, scratch)
    elif operation == SHEAR_X:
        _shear(planes, arg, 0, 1, size, scratch)
    elif operation == SHEAR_Y:
        _shear(planes, arg, size if flipped else 0, size, 1, scratch)
    elif operation == TRANSLATE_X:
        _nearest(planes, 1.0, 0.0, arg * size, 0.0, 1.0, 0.0, scratch)
    elif operation == TRANSLATE_Y:
        _nearest(planes, 1.0, 0.0, 0.0, 0.0, 1.0, arg * size, scratch)
    round_levels(planes)
