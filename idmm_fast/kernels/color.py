"""Colour jitter and grayscale on float32 planes (3, S, S) of levels 0..255, in place; torchvision's definitions.

Sources: torchvision.transforms.functional.adjust_{brightness,contrast,saturation,hue} on float images, and ITU-R 601 luma.
Values are clamped after each operation and rounded only when the view is written out.
"""

import numpy as np

from .jit import kernel
from .simd import floor, highest, load8, lowest, multiply_add, splat8, store8, total8, where_equal

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # how `jitter` numbers the operations
_ASIDE = 16  # floats of scratch: five operations, then three vectors
PROGRAM = _ASIDE + 3 * 8
_BLOCK = 1024  # pixels: 12 KB

_R, _G, _B = np.float32(0.299), np.float32(0.587), np.float32(0.114)


@kernel(inline=True)
def _luma(r, g, b):
    return multiply_add(splat8(_R), r, multiply_add(splat8(_G), g, splat8(_B) * b))


@kernel(inline=True)
def _blended(x, factor, rest):
    return lowest(highest(multiply_add(x, factor, rest), splat8(0.0)), splat8(255.0))


@kernel(inline=True)
def _turned(r, g, b, turn):
    # HSV and back without branches. The hue h is in sectors, 0..6; a channel is value - chroma * (1 - its share), and the
    # shares are clamp(|h - 3| - 1), clamp(2 - |h - 2|) and clamp(2 - |h - 4|).
    zero, one, two, six = splat8(0.0), splat8(1.0), splat8(2.0), splat8(6.0)
    value = highest(r, highest(g, b))
    chroma = value - lowest(r, lowest(g, b))
    scale = one / highest(chroma, splat8(1e-6))
    sector = where_equal(value, g, (b - r) * scale + two, (r - g) * scale + splat8(4.0))
    h = where_equal(value, r, (g - b) * scale, sector) + turn
    h = h - six * floor(h * splat8(1 / 6))
    least = value - chroma
    red = h - splat8(3.0)
    red = lowest(highest(highest(red, zero - red) - one, zero), one)
    green = h - two
    green = lowest(highest(two - highest(green, zero - green), zero), one)
    blue = h - splat8(4.0)
    blue = lowest(highest(two - highest(blue, zero - blue), zero), one)
    return multiply_add(chroma, red, least), multiply_add(chroma, green, least), multiply_add(chroma, blue, least)


@kernel
def _turn(flat, red, green, blue, n, turn):
    turn_ = splat8(turn)
    for k in range(0, n, 8):
        r, g, b = _turned(load8(flat, red + k), load8(flat, green + k), load8(flat, blue + k), turn_)
        store8(flat, red + k, r)
        store8(flat, green + k, g)
        store8(flat, blue + k, b)


@kernel
def _blend(flat, red, green, blue, n, factor, rest):
    factor_, rest_ = splat8(factor), splat8(rest)
    for k in range(0, n, 8):
        store8(flat, red + k, _blended(load8(flat, red + k), factor_, rest_))
        store8(flat, green + k, _blended(load8(flat, green + k), factor_, rest_))
        store8(flat, blue + k, _blended(load8(flat, blue + k), factor_, rest_))


@kernel
def _blend_with_luma(flat, red, green, blue, n, factor, rest):
    factor_, rest_ = splat8(factor), splat8(rest)
    for k in range(0, n, 8):
        r, g, b = load8(flat, red + k), load8(flat, green + k), load8(flat, blue + k)
        luma = rest_ * _luma(r, g, b)
        store8(flat, red + k, _blended(r, factor_, luma))
        store8(flat, green + k, _blended(g, factor_, luma))
        store8(flat, blue + k, _blended(b, factor_, luma))


@kernel
def _total_luma(flat, red, green, blue, n):
    total = splat8(0.0)
    for k in range(0, n, 8):
        total = total + _luma(load8(flat, red + k), load8(flat, green + k), load8(flat, blue + k))
    return total8(total)


@kernel
def _run(program, count, flat, red, green, blue, n):
    """The first `count` operations on n pixels, a multiple of eight, whose channels begin at these indices."""
    for k in range(0, 3 * count, 3):
        which, factor, rest = program[k], program[k + 1], program[k + 2]
        if which == HUE:
            _turn(flat, red, green, blue, n, factor)
        elif which == SATURATION:
            _blend_with_luma(flat, red, green, blue, n, factor, rest)
        else:
            _blend(flat, red, green, blue, n, factor, rest)


@kernel
def recolor(planes, program, count, mean):
    """Run the first `count` operations of `program` on all pixels. Returns the mean of the image's luma after that if `mean`, else 0.

    program: float32 (PROGRAM,), three numbers an operation: which; its factor; and what is added to factor * level: nothing (BRIGHTNESS),
    a number (CONTRAST), this many times the luma (SATURATION). Of HUE, the factor is in sectors of a sixth of a turn.
    A block of pixels goes through all operations while it is in the nearest cache. Luma is summed in one fixed order, so that
    the mean is always the same number.
    """
    size = planes.shape[1] * planes.shape[2]
    flat = planes.reshape(-1)
    total = 0.0
    whole = size - size % 8
    for k in range(0, whole, _BLOCK):
        n = min(_BLOCK, whole - k)
        _run(program, count, flat, k, size + k, 2 * size + k, n)
        if mean:
            total += _total_luma(flat, k, size + k, 2 * size + k, n)
    if whole < size:  # the last few, in a vector of their own
        rest = size - whole
        for c in range(3):
            for i in range(rest):
                program[_ASIDE + 8 * c + i] = flat[c * size + whole + i]
        _run(program, count, program, _ASIDE, _ASIDE + 8, _ASIDE + 16, 8)
        for c in range(3):
            for i in range(rest):
                flat[c * size + whole + i] = program[_ASIDE + 8 * c + i]
        if mean:
            for i in range(whole, size):
                total += _R * flat[i] + _G * flat[size + i] + _B * flat[2 * size + i]
    return total / size


@kernel(inline=True)
def _put(program, k, which, factor, rest):
    program[3 * k], program[3 * k + 1], program[3 * k + 2] = which, factor, rest


@kernel
def adjust_brightness(planes, factor, program):
    _put(program, 0, BRIGHTNESS, factor, 0.0)
    recolor(planes, program, 1, False)


@kernel
def adjust_contrast(planes, factor, program):
    """Blend with the mean of the image's luma."""
    _put(program, 0, CONTRAST, factor, (1.0 - factor) * recolor(planes, program, 0, True))
    recolor(planes, program, 1, False)


@kernel
def adjust_saturation(planes, factor, program):
    """Blend with the image's luma; with factor 0 it is a grayscale."""
    _put(program, 0, SATURATION, factor, 1.0 - factor)
    recolor(planes, program, 1, False)


@kernel
def adjust_hue(planes, shift, program):
    """Turn the hue by `shift` turns (-0.5..0.5), keeping HSV's saturation and value."""
    _put(program, 0, HUE, 6.0 * shift, 0.0)
    recolor(planes, program, 1, False)


@kernel
def jitter(planes, order, brightness, contrast, saturation, hue, gray, program):
    """The four operations in the order drawn (int, (4,)), then grayscale if `gray`.

    In two passes over the image, because contrast needs the mean of what the operations before it make.
    """
    n = 0
    for k in range(4):
        if order[k] == BRIGHTNESS:
            _put(program, n, BRIGHTNESS, brightness, 0.0)
        elif order[k] == CONTRAST:
            mean = recolor(planes, program, n, True)
            n = 0
            _put(program, n, CONTRAST, contrast, (1.0 - contrast) * mean)
        elif order[k] == SATURATION:
            _put(program, n, SATURATION, saturation, 1.0 - saturation)
        elif hue != 0:
            _put(program, n, HUE, 6.0 * hue, 0.0)
        else:
            continue
        n += 1
    if gray:
        _put(program, n, SATURATION, 0.0, 1.0)
        n += 1
    recolor(planes, program, n, False)
