"""Colour jitter and grayscale on float32 planes (3, S, S) of levels 0..255, in place; torchvision's definitions.

Sources: torchvision.transforms.functional.adjust_{brightness,contrast,saturation,hue} on float images, and ITU-R 601 luma.
Values are clamped after each operation and rounded only when the view is written out.
"""

import math

import numpy as np

from ..jit import kernel

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
def adjust_contrast(planes, factor):
    """Blend with the mean of the image's luma."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    sums = np.zeros(16, dtype=np.float32)  # sixteen partial sums: a vector's lanes, and a fixed order of addition
    whole = red.size // 16 * 16
    for k in range(0, whole, 16):
        for lane in range(16):
            sums[lane] += _R * red[k + lane] + _G * green[k + lane] + _B * blue[k + lane]
    total = 0.0
    for lane in range(16):
        total += sums[lane]
    for k in range(whole, red.size):
        total += _R * red[k] + _G * green[k] + _B * blue[k]
    factor = np.float32(factor)
    rest = np.float32((_ONE - factor) * (total / red.size))
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
def _hue_channel(n, sector, value, chroma):
    # HSV to RGB without branches: value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + sector) mod 6.
    k = n + sector
    k = k - np.float32(6) * math.floor(k * np.float32(1 / 6))
    return value - chroma * max(_ZERO, min(min(k, np.float32(4) - k), _ONE))


@kernel
def adjust_hue(planes, shift):
    """Turn the hue by `shift` turns (-0.5..0.5), keeping HSV's saturation and value."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    turn = np.float32(6 * shift)
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, max(g, b))
        chroma = value - min(r, min(g, b))
        scale = _ONE / max(chroma, np.float32(1e-6))
        if value == r:
            sector = (g - b) * scale
        elif value == g:
            sector = (b - r) * scale + np.float32(2)
        else:
            sector = (r - g) * scale + np.float32(4)
        sector += turn
        red[i] = _hue_channel(np.float32(5), sector, value, chroma)
        green[i] = _hue_channel(np.float32(3), sector, value, chroma)
        blue[i] = _hue_channel(np.float32(1), sector, value, chroma)


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
