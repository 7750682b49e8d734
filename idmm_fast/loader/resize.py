"""Crop and resize with PIL's antialiased filters: the filter's support grows with the reduction and ends at the crop's edge."""

import math

import numpy as np

from ..jit import kernel

BILINEAR_SUPPORT, BICUBIC_SUPPORT = 1.0, 2.0
_BLOCK = 1 << 16  # floats of intermediate rows that are worked on together: 256 KB, twice, stay in the L2 cache
_U = np.uint64


def scratch_size(size, width):
    """Floats of scratch that `crop_resize` needs for views of `size` pixels from images of at most `width` pixels."""
    return 3 * size * size + 2 * max(_BLOCK, 12 * width)


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
def _down(source, top, left, starts, table, taps, first, count, n, rows):
    """Rows first .. first + count - 1 of the vertical pass, into `rows` (flat, count * n): whole rows at once, three taps a time."""
    zero = np.float32(0)
    for k in range(count):
        y = first + k
        out = rows[k * n : (k + 1) * n]
        for t in range(0, taps, 3):
            w0, w1, w2 = table[y, t], zero, zero
            if t > 0 and w0 == 0:
                break
            a = source[top + starts[y] + t].reshape(-1)[left : left + n]
            b = c = a
            if t + 1 < taps and table[y, t + 1] != 0:
                w1, b = table[y, t + 1], source[top + starts[y] + t + 1].reshape(-1)[left : left + n]
            if t + 2 < taps and table[y, t + 2] != 0:
                w2, c = table[y, t + 2], source[top + starts[y] + t + 2].reshape(-1)[left : left + n]
            if t == 0:
                for i in range(n):
                    out[i] = w0 * np.float32(a[i]) + w1 * np.float32(b[i]) + w2 * np.float32(c[i])
            else:
                for i in range(n):
                    out[i] += w0 * np.float32(a[i]) + w1 * np.float32(b[i]) + w2 * np.float32(c[i])


@kernel
def transpose(source, height, width, out):
    """out[x * height + y] = source[y * width + x], both flat float32: in tiles of 4 x 4, which halves the time of a plain loop.

    Unsigned indices: a signed one could be negative, and numba's test for that keeps LLVM from vectorising.
    """
    h, w, four, one, two, three = _U(height), _U(width), _U(4), _U(1), _U(2), _U(3)
    h4, w4 = h - h % four, w - w % four
    for x in range(_U(0), w4, four):
        for y in range(_U(0), h4, four):
            p = y * w + x
            q = x * h + y
            a0, a1, a2, a3 = source[p], source[p + one], source[p + two], source[p + three]
            p += w
            b0, b1, b2, b3 = source[p], source[p + one], source[p + two], source[p + three]
            p += w
            c0, c1, c2, c3 = source[p], source[p + one], source[p + two], source[p + three]
            p += w
            d0, d1, d2, d3 = source[p], source[p + one], source[p + two], source[p + three]
            out[q], out[q + one], out[q + two], out[q + three] = a0, b0, c0, d0
            q += h
            out[q], out[q + one], out[q + two], out[q + three] = a1, b1, c1, d1
            q += h
            out[q], out[q + one], out[q + two], out[q + three] = a2, b2, c2, d2
            q += h
            out[q], out[q + one], out[q + two], out[q + three] = a3, b3, c3, d3
        for y in range(h4, h):
            for k in range(x, x + four):
                out[k * h + y] = source[y * w + k]
    for x in range(w4, w):
        for y in range(h):
            out[x * h + y] = source[y * w + x]


@kernel
def _across(columns, starts, table, taps, first, count, planes):
    """The horizontal pass on transposed rows: `columns` (flat, 3 * width * count) holds pixel x, channel c, rows in sequence.

    A column of the result is a weighted sum of whole source columns, four taps a time. Fills columns first .. first +
    count - 1 of the transposed `planes` (3, S, S).
    """
    zero = np.float32(0)
    for x in range(planes.shape[1]):
        for c in range(3):
            out = planes[c, x, first : first + count]
            for t in range(0, taps, 4):
                w0, w1, w2, w3 = table[x, t], zero, zero, zero
                if t > 0 and w0 == 0:
                    break
                at = (3 * (starts[x] + t) + c) * count
                a = columns[at : at + count]
                b = d = e = a
                if t + 1 < taps and table[x, t + 1] != 0:
                    w1, b = table[x, t + 1], columns[at + 3 * count : at + 4 * count]
                if t + 2 < taps and table[x, t + 2] != 0:
                    w2, d = table[x, t + 2], columns[at + 6 * count : at + 7 * count]
                if t + 3 < taps and table[x, t + 3] != 0:
                    w3, e = table[x, t + 3], columns[at + 9 * count : at + 10 * count]
                if t == 0:
                    for y in range(count):
                        out[y] = w0 * a[y] + w1 * b[y] + w2 * d[y] + w3 * e[y]
                else:
                    for y in range(count):
                        out[y] += w0 * a[y] + w1 * b[y] + w2 * d[y] + w3 * e[y]


@kernel
def crop_resize(source, top, left, y_starts, y_table, y_taps, x_starts, x_table, x_taps, width, scratch, planes):
    """Resample a crop of `source` (uint8, (H, W, 3)) to `planes` (float32, (3, S, S), levels 0..255, not rounded).

    The crop starts at (top, left) and is `width` pixels wide; the tables are those of `weights`, relative to it.
    Both passes run along contiguous memory: rows are resampled vertically, a block of them that fits the cache is
    transposed, and resampled along the other axis. `scratch`: float32, at least `scratch_size(S, W)`.
    """
    size = planes.shape[1]
    n = 3 * width
    block = max(4, min(size, _BLOCK // n // 4 * 4))
    area, part = size * size, max(_BLOCK, 4 * n)
    turned, rows, columns = scratch[: 3 * area], scratch[3 * area : 3 * area + part], scratch[3 * area + part : 3 * area + 2 * part]
    for first in range(0, size, block):
        count = min(block, size - first)
        _down(source, top, 3 * left, y_starts, y_table, y_taps, first, count, n, rows)
        transpose(rows, count, n, columns)
        _across(columns, x_starts, x_table, x_taps, first, count, turned.reshape(3, size, size))
    for k in range(3 * area):
        turned[k] = min(max(turned[k], np.float32(0)), np.float32(255))  # bicubic overshoots
    flat = planes.reshape(-1)
    for c in range(3):
        transpose(turned[c * area : (c + 1) * area], size, size, flat[c * area : (c + 1) * area])
