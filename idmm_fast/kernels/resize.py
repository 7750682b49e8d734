"""Crop and resize with PIL's antialiased filters: the filter's support grows with the reduction and ends at the crop's edge."""

import math

import numpy as np

from .jit import kernel, to_level
from .simd import (
    add_levels16,
    add_shorts8,
    count8,
    highest,
    load4,
    load8,
    load_levels8,
    lowest,
    multiply_add,
    shorts8,
    shorts16,
    splat4,
    splat8,
    store4,
    store8,
    store_levels8,
    store_pixels8,
    store_shorts8,
    store_shorts16,
    store_turned16,
    store_turned_levels8,
    total8,
    turn4,
)

BILINEAR_SUPPORT, BICUBIC_SUPPORT = 1.0, 2.0
FIXED_TAPS = 256  # the longest filter, in whole vectors, that is applied in fixed point
_ROWS = 4  # that the horizontal pass works on together: it reads a weight once for all of them


@kernel
def scratch_size(size, width, height=0):
    """Floats of scratch that `crop_resize` needs for views of `size` pixels from images of at most `width` pixels; with the
    images' `height`, those of `crop_resize_rounded`."""
    return max(24 * width + 12 * size, _ROWS * (3 * width + 8) + _ROWS * 4 * (size + 4) + (height + _ROWS) * size)


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
    """How many source pixels an output pixel needs at most when `length` becomes `size`, in whole vectors of eight."""
    support = (BICUBIC_SUPPORT if bicubic else BILINEAR_SUPPORT) * max(1.0, length / size)
    return (int(math.ceil(support)) * 2 + 8) // 8 * 8


@kernel
def _bilinear_row(flat, at, count, offset, room, narrow):
    """Weights of `count` source pixels, the first `offset` from the centre and `room` before the edge, from index `at` of `flat` on;
    more are made, up to a multiple of eight."""
    one, zero = splat8(1.0), splat8(0.0)
    place, inside, narrow_ = count8() + splat8(offset), splat8(room) - count8(), splat8(narrow)
    total = zero
    for t in range(0, count, 8):
        scaled = place * narrow_
        w = highest(one - highest(scaled, zero - scaled), zero) * lowest(highest(inside, zero), one)
        store8(flat, at + t, w)
        total = total + w
        place, inside = place + splat8(8.0), inside - splat8(8.0)
    scale = one / splat8(total8(total))
    for t in range(0, count, 8):
        store8(flat, at + t, load8(flat, at + t) * scale)


@kernel
def _bicubic_row(flat, at, count, offset, room, narrow):
    """As `_bilinear_row`, but not more than `count`."""
    total = 0.0
    for t in range(count):
        w = _bicubic((offset + t) * narrow) if t < room else 0.0
        flat[at + t] = w
        total += w
    for t in range(count):
        flat[at + t] /= total


@kernel
def weights(bicubic, length, size, first, count, flip, starts, table):
    """Filter weights for the output pixels first .. first + count - 1 of `length` source pixels resized to `size`.

    Fills `starts` (int64, (count,): first source pixel) and `table` (float32, (count, taps)), and returns how many weights
    each output pixel has, the same for all: loops of one length are what the processor predicts. They sum to 1. With `flip`
    the outputs come in reverse. PIL's precompute_coeffs.
    """
    ratio = length / size
    stretch = max(1.0, ratio)
    support = (BICUBIC_SUPPORT if bicubic else BILINEAR_SUPPORT) * stretch
    narrow, most = 1.0 / stretch, 0
    for k in range(count):
        centre = (first + (count - 1 - k if flip else k) + 0.5) * ratio
        low = max(int(centre - support + 0.5), 0)
        most = max(most, min(int(centre + support + 0.5), length) - low)
        starts[k] = low
    flat, pitch = table.reshape(-1), table.shape[1]
    for k in range(count):
        centre = (first + (count - 1 - k if flip else k) + 0.5) * ratio
        start = min(starts[k], length - most)
        starts[k] = start
        if bicubic:
            _bicubic_row(flat, k * pitch, most, start - centre + 0.5, length - start, narrow)
        else:
            _bilinear_row(flat, k * pitch, most, start - centre + 0.5, length - start, narrow)
    return most


@kernel
def _down(source, at, stride, table, y, taps, n, out, to):
    """One row of the vertical pass: n floats from index `to` of `out`, each the sum of `taps` bytes of `source` (flat),
    `stride` apart, the first at index `at`, weighted by table[y]. Sums stay in registers; the last eight may be made twice."""
    first = 0
    while taps > 1 and table[y, taps - 1] == 0:
        taps -= 1
    while first < taps - 1 and table[y, first] == 0:
        first += 1
    at += first * stride
    x = 0
    while x + 32 <= n:
        a = b = c = d = splat8(0.0)
        p = at + x
        for t in range(first, taps):
            w = splat8(table[y, t])
            a = multiply_add(w, load_levels8(source, p), a)
            b = multiply_add(w, load_levels8(source, p + 8), b)
            c = multiply_add(w, load_levels8(source, p + 16), c)
            d = multiply_add(w, load_levels8(source, p + 24), d)
            p += stride
        store8(out, to + x, a)
        store8(out, to + x + 8, b)
        store8(out, to + x + 16, c)
        store8(out, to + x + 24, d)
        x += 32
    while x < n and n >= 8:
        x = min(x, n - 8)
        a = splat8(0.0)
        p = at + x
        for t in range(first, taps):
            a = multiply_add(splat8(table[y, t]), load_levels8(source, p), a)
            p += stride
        store8(out, to + x, a)
        x += 8
    for i in range(x, n):
        total = np.float32(0)
        for t in range(first, taps):
            total += table[y, t] * np.float32(source[at + (t - first) * stride + i])
        out[to + i] = total


@kernel
def _across(rows, pitch, starts, taps, table, pixels):
    """The horizontal pass on four rows of RGB floats, `pitch` apart in `rows`: to four rows of RGBx in `pixels`, each of S + 4 pixels."""
    size = starts.size
    row = 4 * (size + 4)
    for x in range(size):
        a = b = c = d = splat4(0.0)
        at = 3 * starts[x]
        for t in range(taps):
            w = splat4(table[x, t])
            a = multiply_add(w, load4(rows, at), a)
            b = multiply_add(w, load4(rows, at + pitch), b)
            c = multiply_add(w, load4(rows, at + 2 * pitch), c)
            d = multiply_add(w, load4(rows, at + 3 * pitch), d)
            at += 3
        store4(pixels, 4 * x, a)
        store4(pixels, 4 * x + row, b)
        store4(pixels, 4 * x + 2 * row, c)
        store4(pixels, 4 * x + 3 * row, d)


@kernel
def _split(pixels, at, red, green, blue):
    """RGBx pixels from index `at` on, to three rows; the last four may be made twice."""
    size = red.size
    x = 0
    while x < size and size >= 4:
        x = min(x, size - 4)
        k = at + 4 * x
        r, g, b = turn4(load4(pixels, k), load4(pixels, k + 4), load4(pixels, k + 8), load4(pixels, k + 12))
        store4(red, x, r)
        store4(green, x, g)
        store4(blue, x, b)
        x += 4
    for i in range(x, size):
        red[i], green[i], blue[i] = pixels[at + 4 * i], pixels[at + 4 * i + 1], pixels[at + 4 * i + 2]


@kernel
def _to_fixed(table, taps):
    """The weights in fixed point, in their own place: int32 of 0..65535."""
    fixed = table.view(np.int32)
    for k in range(table.shape[0]):
        for t in range(taps):
            fixed[k, t] = min(int(table[k, t] * np.float32(65536) + np.float32(0.5)), 65535)
    return fixed


@kernel
def _down_fixed(source, at, stride, fixed, y, taps, n, out, to):
    """`_down` in fixed point: n uint16 from index `to` of `out`. The last sixteen may be made twice."""
    x = 0
    while x + 64 <= n:
        a = b = c = d = shorts16(taps // 2)  # products are rounded down, on average by a half
        p = at + x
        for t in range(taps):
            w = fixed[y, t]
            a = add_levels16(a, source, p, w)
            b = add_levels16(b, source, p + 16, w)
            c = add_levels16(c, source, p + 32, w)
            d = add_levels16(d, source, p + 48, w)
            p += stride
        store_shorts16(out, to + x, a)
        store_shorts16(out, to + x + 16, b)
        store_shorts16(out, to + x + 32, c)
        store_shorts16(out, to + x + 48, d)
        x += 64
    while x < n and n >= 16:
        x = min(x, n - 16)
        a = shorts16(taps // 2)
        p = at + x
        for t in range(taps):
            a = add_levels16(a, source, p, fixed[y, t])
            p += stride
        store_shorts16(out, to + x, a)
        x += 16
    for i in range(x, n):
        total = taps // 2
        for t in range(taps):
            total += (256 * int(source[at + t * stride + i]) * fixed[y, t]) >> 16
        out[to + i] = total


@kernel
def _turn(rows, n, columns):
    """Eight rows of n uint16 to n columns of eight."""
    x = 0
    while x < n and n >= 16:
        x = min(x, n - 16)
        store_turned16(columns, 8 * x, rows, x, n)
        x += 16
    for i in range(x, n):
        for k in range(8):
            columns[8 * i + k] = rows[k * n + i]


@kernel
def _across8(columns, starts, fixed, taps, turned):
    """The horizontal pass on eight rows: from `columns` to `turned`, eight uint16 for each channel and output column."""
    size = starts.size
    for x in range(size):
        r = g = b = shorts8(taps // 2)
        at = 24 * starts[x]
        for t in range(taps):
            w = fixed[x, t]
            r = add_shorts8(r, columns, at, w)
            g = add_shorts8(g, columns, at + 8, w)
            b = add_shorts8(b, columns, at + 16, w)
            at += 24
        store_shorts8(turned, 8 * x, r)
        store_shorts8(turned, 8 * (size + x), g)
        store_shorts8(turned, 8 * (2 * size + x), b)


@kernel
def _crop_resize_floats(
    source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes
):
    """`crop_resize` in floats, four rows at a time."""
    high, wide = planes.shape[1:]
    stride, n = 3 * source.shape[1], 3 * width
    pitch, row = n + 8, 4 * (wide + 4)
    rows, pixels = scratch[: _ROWS * pitch], scratch[_ROWS * pitch : _ROWS * (pitch + row)]
    flat = source.reshape(-1)
    for first in range(0, high, _ROWS):
        y = min(first, high - _ROWS)  # the last four rows may be made twice
        for k in range(_ROWS):
            at = (top + y_starts[y + k]) * stride + 3 * left
            _down(flat, at, stride, y_table, y + k, y_taps, n, rows, k * pitch)
        _across(rows, pitch, x_starts, x_taps, x_table, pixels)
        for k in range(_ROWS):
            _split(pixels, k * row, planes[0, y + k], planes[1, y + k], planes[2, y + k])
    levels = planes.reshape(-1)
    for k in range(levels.size):
        levels[k] = min(levels[k], np.float32(255))


@kernel
def crop_resize(source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes):
    """Resample a crop of `source` (uint8, (H, W, 3)) to `planes` (float32, (3, S, T), levels 0..255, not rounded), S and T at least 8.

    For filters without negative weights. The crop starts at (top, left) and is `width` pixels wide; starts, taps and tables are those of
    `weights`, relative to it; the tables are used up. Eight rows at a time, in fixed point of 16 bits: down the columns sixteen bytes a
    vector, transposed, then along the rows eight rows a vector. A product's rounding is off by half a unit of 1/256 level, for all of a
    filter in the same direction where levels are alike: by (y_taps + x_taps) / 512 levels at most, 0.1 for reductions up to 12 in both
    directions, 1 for those of 128. Beyond `FIXED_TAPS` in either direction everything is done in floats, off by 0.1 level at most
    (reductions up to 8,000). `scratch`: float32, at least `scratch_size(T, W)`.
    """
    if max(y_taps, x_taps) > FIXED_TAPS:
        _crop_resize_floats(
            source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes
        )
        return
    high, wide = planes.shape[1:]
    stride, n = 3 * source.shape[1], 3 * width
    shorts = scratch.view(np.uint16)
    rows, columns, turned = shorts[: 8 * n], shorts[8 * n : 16 * n], shorts[16 * n : 16 * n + 24 * wide]
    y_fixed, x_fixed = _to_fixed(y_table[:high], y_taps), _to_fixed(x_table[:wide], x_taps)
    flat, out = source.reshape(-1), planes.reshape(-1)
    base = top * stride + 3 * left
    y = 0
    while y < high:
        y = min(y, high - 8)  # the last eight rows may be made twice
        for k in range(8):
            _down_fixed(flat, base + y_starts[y + k] * stride, stride, y_fixed, y + k, y_taps, n, rows, k * n)
        _turn(rows, n, columns)
        _across8(columns, x_starts, x_fixed, x_taps, turned)
        for c in range(3):
            x = 0
            while x < wide:
                x = min(x, wide - 8)
                store_turned_levels8(out, (c * high + y) * wide + x, wide, turned, 8 * (c * wide + x))
                x += 8
        y += 8


@kernel
def write_span(planes, y, x0, x1, out, at):
    """Round the pixels x0 .. x1 - 1 of row y of `planes` (float32, (3, H, W), levels within 0..255) to uint8, R, G, B, R, ..., in `out`,
    where a row whose pixel 0 is at index `at` has them."""
    high, wide = planes.shape[1:]
    flat = planes.reshape(-1)
    red, green, blue = y * wide, (high + y) * wide, (2 * high + y) * wide
    half = splat8(0.5)
    x = x0
    while x < x1 and x1 - x0 >= 8:  # the last eight may be written twice
        x = min(x, x1 - 8)
        store_pixels8(
            out, at + 3 * x, load8(flat, red + x) + half, load8(flat, green + x) + half, load8(flat, blue + x) + half
        )
        x += 8
    for i in range(x, x1):
        for c in range(3):
            out[at + 3 * i + c] = to_level(flat[(c * high + y) * wide + i])


@kernel
def resized(pixels, height, width):
    """`pixels` (uint8, (H, W, 3)) as uint8 (height, width, 3), both at least 8: bilinear, antialiased, rounded."""
    y_starts, x_starts = np.empty(height, np.int64), np.empty(width, np.int64)
    y_table = np.empty((height, taps(False, pixels.shape[0], height)), np.float32)
    x_table = np.empty((width, taps(False, pixels.shape[1], width)), np.float32)
    y_taps = weights(False, pixels.shape[0], height, 0, height, False, y_starts, y_table)
    x_taps = weights(False, pixels.shape[1], width, 0, width, False, x_starts, x_table)
    planes = np.empty((3, height, width), np.float32)
    scratch = np.empty(scratch_size(width, pixels.shape[1]), np.float32)
    crop_resize(pixels, 0, 0, y_starts, y_taps, y_table, x_starts, x_taps, x_table, pixels.shape[1], scratch, planes)
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        write_span(planes, y, 0, width, out.reshape(-1), 3 * y * width)
    return out


@kernel
def crop_resize_rounded(
    source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes
):
    """`crop_resize` for any filter, in floats and in PIL's order: horizontally first, rounded and cut off at 0 and 255 between the passes.

    Bicubic weights overshoot at hard edges, and what is cut off there is seen. `scratch`: at least `scratch_size(S, W, H)`.
    """
    size = planes.shape[1]
    stride, n = 3 * source.shape[1], 3 * width
    pitch, wide = n + 8, 4 * (size + 4)
    rows, pixels = scratch[: _ROWS * pitch], scratch[_ROWS * pitch : _ROWS * (pitch + wide)]
    done = scratch[_ROWS * (pitch + wide) :].view(np.uint8)  # RGBx of all rows of the crop
    flat = source.reshape(-1)
    top += y_starts[0]
    height = y_starts[size - 1] + y_taps - y_starts[0]
    low, high, half = splat8(0.0), splat8(255.0), splat8(0.5)
    for first in range(0, height, _ROWS):
        count = min(_ROWS, height - first)
        for k in range(count):
            at = (top + first + k) * stride + 3 * left
            for i in range(n):
                rows[k * pitch + i] = np.float32(flat[at + i])
        _across(rows, pitch, x_starts, x_taps, x_table, pixels)
        for k in range(count):
            x = 0
            while x < 4 * size:
                x = min(x, 4 * size - 8)
                value = lowest(highest(load8(pixels, k * wide + x) + half, low), high)
                store_levels8(done, (first + k) * 4 * size + x, value)
                x += 8
    for y in range(size):
        _down(done, (y_starts[y] - y_starts[0]) * 4 * size, 4 * size, y_table, y, y_taps, 4 * size, pixels, 0)
        _split(pixels, 0, planes[0, y], planes[1, y], planes[2, y])
    flat_planes = planes.reshape(-1)
    for k in range(flat_planes.size):
        flat_planes[k] = min(max(flat_planes[k], np.float32(0)), np.float32(255))
