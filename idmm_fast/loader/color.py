"""Colour jitter and grayscale on float32 planes (3, S, S) of levels 0..255, in place; torchvision's definitions.

Sources: torchvision.transforms.functional.adjust_{brightness,contrast,saturation,hue} on float images, and ITU-R 601 luma.
Values are clamped after each operation and rounded only when the view is written out.
"""

import numpy as np

from ..jit import kernel
from ..simd import floor, highest, load8, lowest, multiply_add, splat8, store8, total8, where_equal

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # how `jitter` numbers the operations
PROGRAM = (5, 3)  # shape of the scratch (float32) that `jitter` needs: a row an operation, what it is, its factor, and the rest

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


@kernel(inline=True)
def _operate(program, count, r, g, b):
    """The first `count` operations of `program` in turn, on eight pixels that stay in registers."""
    for k in range(count):
        factor, rest = splat8(program[k, 1]), splat8(program[k, 2])
        if program[k, 0] == HUE:
            r, g, b = _turned(r, g, b, factor)
        else:
            if program[k, 0] == SATURATION:
                rest = rest * _luma(r, g, b)
            r, g, b = _blended(r, factor, rest), _blended(g, factor, rest), _blended(b, factor, rest)
    return r, g, b


@kernel
def recolor(planes, program, count):
    """Run the first `count` operations of `program` on all pixels, at least eight. Returns the mean of the image's luma.

    program: float32 (n, 3), a row an operation: which; its factor; and what is added to factor * level: nothing (BRIGHTNESS), a
    number (CONTRAST), this many times the luma (SATURATION). Of HUE, the factor is in sectors of a sixth of a turn.
    Luma is summed in one fixed order, so that the mean is always the same number.
    """
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    end = red.size - 8  # the last eight are read before any is written, and written after all
    r_end, g_end, b_end = _operate(program, count, load8(red, end), load8(green, end), load8(blue, end))
    total = 0.0
    k = 0
    while k < end:
        luma = splat8(0.0)
        stop = min(k + 1024, end)  # sums of many floats lose digits: move them to a double now and then
        while k < stop:
            r, g, b = _operate(program, count, load8(red, k), load8(green, k), load8(blue, k))
            luma = luma + _luma(r, g, b)
            if count > 0:
                store8(red, k, r)
                store8(green, k, g)
                store8(blue, k, b)
            k += 8
        total += total8(luma)
    store8(red, end, r_end)
    store8(green, end, g_end)
    store8(blue, end, b_end)
    for i in range(k, red.size):
        total += _R * red[i] + _G * green[i] + _B * blue[i]
    return total / red.size


@kernel(inline=True)
def _put(program, k, which, factor, rest):
    program[k, 0], program[k, 1], program[k, 2] = which, factor, rest


@kernel
def adjust_brightness(planes, factor, program):
    _put(program, 0, BRIGHTNESS, factor, 0.0)
    recolor(planes, program, 1)


@kernel
def adjust_contrast(planes, factor, program):
    """Blend with the mean of the image's luma."""
    _put(program, 0, CONTRAST, factor, (1.0 - factor) * recolor(planes, program, 0))
    recolor(planes, program, 1)


@kernel
def adjust_saturation(planes, factor, program):
    """Blend with the image's luma; with factor 0 it is a grayscale."""
    _put(program, 0, SATURATION, factor, 1.0 - factor)
    recolor(planes, program, 1)


@kernel
def adjust_hue(planes, shift, program):
    """Turn the hue by `shift` turns (-0.5..0.5), keeping HSV's saturation and value."""
    _put(program, 0, HUE, 6.0 * shift, 0.0)
    recolor(planes, program, 1)


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
            mean = recolor(planes, program, n)
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
    recolor(planes, program, n)
