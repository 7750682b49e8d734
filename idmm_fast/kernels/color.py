"""Colour jitter and grayscale on float32 planes (3, S, S) of levels 0..255, in place; torchvision's definitions.

Sources: torchvision.transforms.functional.adjust_{brightness,contrast,saturation,hue} on float images; luma of ITU-R
601. Values are clamped after each operation and rounded only when the crop is written out. `program` is scratch:
float32 (PROGRAM,).
"""

import numpy as np

from .jit import kernel
from .simd import floor, hsum8, load8, multiply_add, splat8, store8, vmax, vmin, where_equal

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # how `jitter` numbers the operations
_TAIL = 16  # floats of scratch: five operations, then three vectors
PROGRAM = _TAIL + 3 * 8
_BLOCK = 1024  # pixels: 12 KB

_R, _G, _B = np.float32(0.299), np.float32(0.587), np.float32(0.114)


@kernel(inline=True)
def _luma(r, g, b):
    return multiply_add(splat8(_R), r, multiply_add(splat8(_G), g, splat8(_B) * b))


@kernel(inline=True)
def _blended(x, factor, rest):
    return vmin(vmax(multiply_add(x, factor, rest), splat8(0.0)), splat8(255.0))


@kernel(inline=True)
def _hue_shifted(r, g, b, sectors):
    # HSV and back without branches. The hue h is in sectors, 0..6; a channel is value - chroma * (1 - part), and the
    # parts are clamp(|h - 3| - 1), clamp(2 - |h - 2|) and clamp(2 - |h - 4|).
    zero, one, two, six = splat8(0.0), splat8(1.0), splat8(2.0), splat8(6.0)
    value = vmax(r, vmax(g, b))
    chroma = value - vmin(r, vmin(g, b))
    scale = one / vmax(chroma, splat8(1e-6))
    sector = where_equal(value, g, (b - r) * scale + two, (r - g) * scale + splat8(4.0))
    h = where_equal(value, r, (g - b) * scale, sector) + sectors
    h = h - six * floor(h * splat8(1 / 6))
    least = value - chroma
    red = h - splat8(3.0)
    red = vmin(vmax(vmax(red, zero - red) - one, zero), one)
    green = h - two
    green = vmin(vmax(two - vmax(green, zero - green), zero), one)
    blue = h - splat8(4.0)
    blue = vmin(vmax(two - vmax(blue, zero - blue), zero), one)
    return multiply_add(chroma, red, least), multiply_add(chroma, green, least), multiply_add(chroma, blue, least)


@kernel
def _shift_hue(flat, red, green, blue, n, sectors):
    sectors_v = splat8(sectors)
    for k in range(0, n, 8):
        r, g, b = _hue_shifted(load8(flat, red + k), load8(flat, green + k), load8(flat, blue + k), sectors_v)
        store8(flat, red + k, r)
        store8(flat, green + k, g)
        store8(flat, blue + k, b)


@kernel
def _blend(flat, red, green, blue, n, factor, rest):
    factor_v, rest_v = splat8(factor), splat8(rest)
    for k in range(0, n, 8):
        store8(flat, red + k, _blended(load8(flat, red + k), factor_v, rest_v))
        store8(flat, green + k, _blended(load8(flat, green + k), factor_v, rest_v))
        store8(flat, blue + k, _blended(load8(flat, blue + k), factor_v, rest_v))


@kernel
def _blend_with_luma(flat, red, green, blue, n, factor, rest):
    factor_v, rest_v = splat8(factor), splat8(rest)
    for k in range(0, n, 8):
        r, g, b = load8(flat, red + k), load8(flat, green + k), load8(flat, blue + k)
        luma = rest_v * _luma(r, g, b)
        store8(flat, red + k, _blended(r, factor_v, luma))
        store8(flat, green + k, _blended(g, factor_v, luma))
        store8(flat, blue + k, _blended(b, factor_v, luma))


@kernel
def _sum_luma(flat, red, green, blue, n):
    total = splat8(0.0)
    for k in range(0, n, 8):
        total = total + _luma(load8(flat, red + k), load8(flat, green + k), load8(flat, blue + k))
    return hsum8(total)


@kernel
def _run(program, count, flat, red, green, blue, n):
    """The first `count` operations on n pixels, a multiple of eight, whose channels begin at these indices."""
    for k in range(0, 3 * count, 3):
        which, factor, rest = program[k], program[k + 1], program[k + 2]
        if which == HUE:
            _shift_hue(flat, red, green, blue, n, factor)
        elif which == SATURATION:
            _blend_with_luma(flat, red, green, blue, n, factor, rest)
        else:
            _blend(flat, red, green, blue, n, factor, rest)


@kernel
def recolor(planes, program, count, mean):
    """Run the first `count` operations of `program` on all pixels.

    A block of pixels goes through all operations while it is in the nearest cache. Luma is summed in one fixed order,
    so the mean is always the same number.

    Args:
        planes: float32 (3, H, W), changed in place.
        program: float32 (PROGRAM,), three numbers an operation: its kind; its factor; what is added to factor * level,
            which is nothing (BRIGHTNESS), a number (CONTRAST) or this many times the luma (SATURATION). HUE's factor is
            a shift in sixths of the circle.
        count: of operations.
        mean: whether the mean is wanted.

    Returns:
        The mean of the image's luma after the operations if `mean`, else 0.
    """
    size = planes.shape[1] * planes.shape[2]
    flat = planes.reshape(-1)
    total = 0.0
    whole = size - size % 8
    for k in range(0, whole, _BLOCK):
        n = min(_BLOCK, whole - k)
        _run(program, count, flat, k, size + k, 2 * size + k, n)
        if mean:
            total += _sum_luma(flat, k, size + k, 2 * size + k, n)
    if whole < size:  # the last few, in a vector of their own
        rest = size - whole
        for c in range(3):
            for i in range(rest):
                program[_TAIL + 8 * c + i] = flat[c * size + whole + i]
        _run(program, count, program, _TAIL, _TAIL + 8, _TAIL + 16, 8)
        for c in range(3):
            for i in range(rest):
                flat[c * size + whole + i] = program[_TAIL + 8 * c + i]
        if mean:
            for i in range(whole, size):
                total += _R * flat[i] + _G * flat[size + i] + _B * flat[2 * size + i]
    return total / size


@kernel(inline=True)
def _set_operation(program, k, which, factor, rest):
    program[3 * k], program[3 * k + 1], program[3 * k + 2] = which, factor, rest


@kernel
def adjust_brightness(planes, factor, program):
    """Multiply by `factor`, 0 or more."""
    _set_operation(program, 0, BRIGHTNESS, factor, 0.0)
    recolor(planes, program, 1, False)


@kernel
def adjust_contrast(planes, factor, program):
    """Blend with the mean of the image's luma; `factor` 0 leaves the mean, 1 the image."""
    _set_operation(program, 0, CONTRAST, factor, (1.0 - factor) * recolor(planes, program, 0, True))
    recolor(planes, program, 1, False)


@kernel
def adjust_saturation(planes, factor, program):
    """Blend with the image's luma; `factor` 0 leaves a grayscale, 1 the image."""
    _set_operation(program, 0, SATURATION, factor, 1.0 - factor)
    recolor(planes, program, 1, False)


@kernel
def adjust_hue(planes, shift, program):
    """Shift the hue by `shift`, a fraction of the hue circle in -0.5..0.5, keeping HSV's saturation and value."""
    _set_operation(program, 0, HUE, 6.0 * shift, 0.0)
    recolor(planes, program, 1, False)


@kernel
def jitter(planes, order, brightness, contrast, saturation, hue, gray, program):
    """The four operations of torchvision's ColorJitter in any order, then grayscale, in place.

    In two passes over the image, because contrast needs the mean of what the operations before it make.

    Args:
        planes: float32 (3, H, W), levels 0..255.
        order: int (4,), the operations BRIGHTNESS, CONTRAST, SATURATION, HUE in the order in which they run.
        brightness: factor, 0 or more.
        contrast: factor, 0 or more.
        saturation: factor, 0 or more.
        hue: shift, a fraction of the hue circle in -0.5..0.5.
        gray: whether grayscale follows.
        program: float32 (PROGRAM,), scratch.
    """
    n = 0
    for k in range(4):
        if order[k] == BRIGHTNESS:
            _set_operation(program, n, BRIGHTNESS, brightness, 0.0)
        elif order[k] == CONTRAST:
            mean = recolor(planes, program, n, True)
            n = 0
            _set_operation(program, n, CONTRAST, contrast, (1.0 - contrast) * mean)
        elif order[k] == SATURATION:
            _set_operation(program, n, SATURATION, saturation, 1.0 - saturation)
        elif hue != 0:
            _set_operation(program, n, HUE, 6.0 * hue, 0.0)
        else:
            continue
        n += 1
    if gray:
        _set_operation(program, n, SATURATION, 0.0, 1.0)
        n += 1
    recolor(planes, program, n, False)
