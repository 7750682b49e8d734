"""Colour jitter and grayscale on float32 planes (3, S, S) of levels 0..255, in place; torchvision's definitions.

Sources: torchvision.transforms.functional.adjust_{brightness,contrast,saturation,hue} on float images, and ITU-R 601 luma.
Values are clamped after each operation and rounded only when the view is written out.
"""

import numpy as np

from ..jit import kernel
from .simd import floor, highest, load8, lowest, multiply_add, splat8, store8, total8, where_equal

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # how `jitter` numbers the operations

_R, _G, _B = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_ZERO, _ONE, _TOP = np.float32(0), np.float32(1), np.float32(255)


@kernel(inline=True)
def _clamp(x):
    return min(max(x, _ZERO), _TOP)


@kernel
def adjust_brightness(planes, factor):
    flat = planes.reshape(-1)
    factor = np.float32(factor)
    for k in range(flat.size):
        flat[k] = _clamp(flat[k] * factor)


@kernel
def mean_luma(planes):
    """The mean of the image's luma; summed in one fixed order, so that it is always the same number."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    even, odd = splat8(0.0), splat8(0.0)
    total = 0.0
    k = 0
    while k + 16 <= red.size:
        even = multiply_add(splat8(_R), load8(red, k), even)
        odd = multiply_add(splat8(_R), load8(red, k + 8), odd)
        even = multiply_add(splat8(_G), load8(green, k), even)
        odd = multiply_add(splat8(_G), load8(green, k + 8), odd)
        even = multiply_add(splat8(_B), load8(blue, k), even)
        odd = multiply_add(splat8(_B), load8(blue, k + 8), odd)
        k += 16
        if k % 1024 == 0:  # sums of many floats lose digits: move them to a double now and then
            total += total8(even + odd)
            even, odd = splat8(0.0), splat8(0.0)
    total += total8(even + odd)
    for i in range(k, red.size):
        total += _R * red[i] + _G * green[i] + _B * blue[i]
    return total / red.size


@kernel
def adjust_contrast(planes, factor):
    """Blend with the mean of the image's luma."""
    factor = np.float32(factor)
    rest = np.float32((_ONE - factor) * mean_luma(planes))
    flat = planes.reshape(-1)
    for k in range(flat.size):
        flat[k] = _clamp(flat[k] * factor + rest)


@kernel
def adjust_saturation(planes, factor):
    """Blend with the image's luma."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    factor = np.float32(factor)
    rest = _ONE - factor
    for k in range(red.size):
        luma = rest * (_R * red[k] + _G * green[k] + _B * blue[k])
        red[k] = _clamp(red[k] * factor + luma)
        green[k] = _clamp(green[k] * factor + luma)
        blue[k] = _clamp(blue[k] * factor + luma)


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
def adjust_hue(planes, shift):
    """Turn the hue by `shift` turns (-0.5..0.5), keeping HSV's saturation and value. At least eight pixels."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    turn = splat8(6 * shift)
    last = red.size - 8  # the last eight are read before any is written, and written after all
    r, g, b = _turned(load8(red, last), load8(green, last), load8(blue, last), turn)
    for i in range(0, last, 8):
        x, y, z = _turned(load8(red, i), load8(green, i), load8(blue, i), turn)
        store8(red, i, x)
        store8(green, i, y)
        store8(blue, i, z)
    store8(red, last, r)
    store8(green, last, g)
    store8(blue, last, b)


@kernel
def to_gray(planes):
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    for k in range(red.size):
        luma = _R * red[k] + _G * green[k] + _B * blue[k]
        red[k] = luma
        green[k] = luma
        blue[k] = luma


@kernel
def jitter(planes, order, brightness, contrast, saturation, hue):
    """The four operations in the order drawn (int, (4,))."""
    for k in range(4):
        if order[k] == BRIGHTNESS:
            adjust_brightness(planes, brightness)
        elif order[k] == CONTRAST:
            adjust_contrast(planes, contrast)
        elif order[k] == SATURATION:
            adjust_saturation(planes, saturation)
        elif hue != 0:
            adjust_hue(planes, hue)
