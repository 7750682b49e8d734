"""Crop and resize with PIL's antialiased filters: the filter's support grows with the reduction and ends at the crop's edge."""

import math

import numpy as np

from ..jit import kernel

BILINEAR_SUPPORT, BICUBIC_SUPPORT = 1.0, 2.0


@kernel
def _bilinear(x):
    return max(0.0, 1.0 - abs(x))


@kernel
def _bicubic(x):
    # Keys' cubic with a = -0.5, as in PIL.
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@kernel
def taps(bicubic, length, size):
    """How many source pixels an output pixel needs at most when `length` becomes `size`."""
    support = (BICUBIC_SUPPORT if bicubic else BILINEAR_SUPPORT) * max(1.0, length / size)
    return int(math.ceil(support)) * 2 + 1


@kernel
def weights(bicubic, length, size, first, count, flip, starts, table):
    """Filter weights for the output pixels first .. first + count - 1 of `length` source pixels resized to `size`.

    Fills `starts` (int32, (count,): first source pixel) and `table` (float32, (count, taps): weights that sum to 1, zero
    past the last). With `flip` the outputs come in reverse. PIL's precompute_coeffs.
    """
    ratio = length / size
    stretch = max(1.0, ratio)
    support = (BICUBIC_SUPPORT if bicubic else BILINEAR_SUPPORT) * stretch
    for k in range(count):
        out = first + (count - 1 - k if flip else k)
        centre = (out + 0.5) * ratio
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), length)
        total = 0.0
        for x in range(low, high):
            at = (x - centre + 0.5) / stretch
            w = _bicubic(at) if bicubic else _bilinear(at)
            table[k, x - low] = w
            total += w
        for x in range(high - low):
            table[k, x] /= total
        table[k, high - low :] = 0.0
        starts[k] = low


@kernel
def crop_resize(source, top, left, y_starts, y_table, y_taps, x_starts, x_table, x_taps, width, row, planes):
    """Resample a crop of `source` (uint8, (H, W, 3)) to `planes` (float32, (3, S, S), levels 0..255, not rounded).

    The crop starts at (top, left) and is `width` pixels wide; the tables are those of `weights`, relative to it.
    `row` is scratch: float32, at least 3 * width.
    """
    size = planes.shape[1]
    n = 3 * width
    for y in range(size):
        first = top + y_starts[y]
        line = source[first].reshape(-1)[3 * left : 3 * (left + width)]
        w = y_table[y, 0]
        for k in range(n):
            row[k] = w * np.float32(line[k])
        for t in range(1, y_taps):
            w = y_table[y, t]
            if w != 0:
                line = source[first + t].reshape(-1)[3 * left : 3 * (left + width)]
                for k in range(n):
                    row[k] += w * np.float32(line[k])
        for x in range(size):
            red = green = blue = np.float32(0)
            at = 3 * x_starts[x]
            for t in range(x_taps):
                w = x_table[x, t]
                if w != 0:
                    red += w * row[at]
                    green += w * row[at + 1]
                    blue += w * row[at + 2]
                at += 3
            planes[0, y, x] = min(max(red, np.float32(0)), np.float32(255))
            planes[1, y, x] = min(max(green, np.float32(0)), np.float32(255))
            planes[2, y, x] = min(max(blue, np.float32(0)), np.float32(255))
