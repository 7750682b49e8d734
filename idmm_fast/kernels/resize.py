"""Crop and resize with PIL's antialiased filters: bilinear and bicubic.

The filter's support grows with the reduction and ends at the crop's edge. Pixels are levels 0..255. A filter has `taps`
weights for each output pixel; `starts` is the first source pixel that they apply to.

One file of over 300 lines: the passes in fixed point and in float32 share tables, scratch and tests.
"""

import math

import numpy as np

from .jit import kernel, to_level
from .simd import (
    add_weighted_u8x16,
    add_weighted_u16x8,
    hsum8,
    iota8,
    load4,
    load8,
    load_u8x8,
    multiply_add,
    splat4,
    splat8,
    splat_u16x8,
    splat_u16x16,
    store4,
    store8,
    store_rgb8,
    store_transposed16,
    store_transposed_q8_8x8,
    store_u8x8,
    store_u16x8,
    store_u16x16,
    transpose4,
    vmax,
    vmin,
)

BILINEAR_SUPPORT, BICUBIC_SUPPORT = 1.0, 2.0
FIXED_TAPS = 256  # the longest filter, in whole vectors, that is applied in fixed point
_ROWS = 4  # that the horizontal pass works on together: it reads a weight once for all of them


@kernel
def scratch_size(size, width, height=0):
    """How many float32 of scratch a resampling needs.

    Args:
        size: the longer side of the output, pixels.
        width: of the widest source image, pixels.
        height: of the tallest source image, pixels, for `crop_resize_rounded`; 0 for `crop_resize`.
    """
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
    """Weights of `count` source pixels, from index `at` of `flat` on; they sum to 1.

    The first is `offset` from the centre and `room` before the edge. More are written, up to a multiple of eight.
    """
    one, zero = splat8(1.0), splat8(0.0)
    place, inside, narrow_v = iota8() + splat8(offset), splat8(room) - iota8(), splat8(narrow)
    total = zero
    for t in range(0, count, 8):
        scaled = place * narrow_v
        w = vmax(one - vmax(scaled, zero - scaled), zero) * vmin(vmax(inside, zero), one)
        store8(flat, at + t, w)
        total = total + w
        place, inside = place + splat8(8.0), inside - splat8(8.0)
    scale = one / splat8(hsum8(total))
    for t in range(0, count, 8):
        store8(flat, at + t, load8(flat, at + t) * scale)


@kernel
def _bicubic_row(flat, at, count, offset, room, narrow):
    """As `_bilinear_row`, but no more than `count` are written."""
    total = 0.0
    for t in range(count):
        w = _bicubic((offset + t) * narrow) if t < room else 0.0
        flat[at + t] = w
        total += w
    for t in range(count):
        flat[at + t] /= total


@kernel
def weights(bicubic, length, size, first, count, flip, starts, table):
    """Filter weights for some output pixels of a row or column that is resized. Source: PIL's precompute_coeffs.

    Args:
        bicubic: whether the filter is bicubic, else bilinear.
        length: of the source, pixels.
        size: of all of the output, pixels.
        first: the first output pixel that is wanted.
        count: how many output pixels are wanted.
        flip: whether they come in reverse.
        starts: int64 (count,), filled with the first source pixel of each output pixel.
        table: float32 (count, taps), filled with the weights; those of an output pixel sum to 1.

    Returns:
        How many weights each output pixel has: the same for all, since the processor predicts loops of one length.
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
def _vertical_pass(source, at, stride, table, y, taps, n, out, to):
    """One row of the vertical pass: n float32 from index `to` of `out` on.

    Each is a sum of `taps` bytes weighted by table[y].

    The bytes are `stride` apart in `source` (flat), the first at index `at`. Sums stay in registers; the last eight may
    be made twice.
    """
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
            a = multiply_add(w, load_u8x8(source, p), a)
            b = multiply_add(w, load_u8x8(source, p + 8), b)
            c = multiply_add(w, load_u8x8(source, p + 16), c)
            d = multiply_add(w, load_u8x8(source, p + 24), d)
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
            a = multiply_add(splat8(table[y, t]), load_u8x8(source, p), a)
            p += stride
        store8(out, to + x, a)
        x += 8
    for i in range(x, n):
        total = np.float32(0)
        for t in range(first, taps):
            total += table[y, t] * np.float32(source[at + (t - first) * stride + i])
        out[to + i] = total


@kernel
def _horizontal_pass(rows, pitch, starts, taps, table, pixels):
    """The horizontal pass on four rows of RGB float32, to four rows of S + 4 pixels RGBx.

    The rows are `pitch` apart in `rows`.
    """
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
def _deinterleave(pixels, at, red, green, blue):
    """RGBx pixels from index `at` on, to three rows; the last four may be made twice."""
    size = red.size
    x = 0
    while x < size and size >= 4:
        x = min(x, size - 4)
        k = at + 4 * x
        r, g, b = transpose4(load4(pixels, k), load4(pixels, k + 4), load4(pixels, k + 8), load4(pixels, k + 12))
        store4(red, x, r)
        store4(green, x, g)
        store4(blue, x, b)
        x += 4
    for i in range(x, size):
        red[i], green[i], blue[i] = pixels[at + 4 * i], pixels[at + 4 * i + 1], pixels[at + 4 * i + 2]


@kernel
def _to_fixed(table, taps):
    """The weights in fixed point, in the place of `table`: int32 of 0..65535."""
    fixed = table.view(np.int32)
    for k in range(table.shape[0]):
        for t in range(taps):
            fixed[k, t] = min(int(table[k, t] * np.float32(65536) + np.float32(0.5)), 65535)
    return fixed


@kernel
def _vertical_pass_fixed(source, at, stride, fixed, y, taps, n, out, to):
    """`_vertical_pass` in q8.8: n uint16 from index `to` of `out` on. The last sixteen may be made twice."""
    x = 0
    while x + 64 <= n:
        a = b = c = d = splat_u16x16(taps // 2)  # products are rounded down, on average by a half
        p = at + x
        for t in range(taps):
            w = fixed[y, t]
            a = add_weighted_u8x16(a, source, p, w)
            b = add_weighted_u8x16(b, source, p + 16, w)
            c = add_weighted_u8x16(c, source, p + 32, w)
            d = add_weighted_u8x16(d, source, p + 48, w)
            p += stride
        store_u16x16(out, to + x, a)
        store_u16x16(out, to + x + 16, b)
        store_u16x16(out, to + x + 32, c)
        store_u16x16(out, to + x + 48, d)
        x += 64
    while x < n and n >= 16:
        x = min(x, n - 16)
        a = splat_u16x16(taps // 2)
        p = at + x
        for t in range(taps):
            a = add_weighted_u8x16(a, source, p, fixed[y, t])
            p += stride
        store_u16x16(out, to + x, a)
        x += 16
    for i in range(x, n):
        total = taps // 2
        for t in range(taps):
            total += (256 * int(source[at + t * stride + i]) * fixed[y, t]) >> 16
        out[to + i] = total


@kernel
def _transpose(rows, n, columns):
    """Eight rows of n uint16 to n columns of eight."""
    x = 0
    while x < n and n >= 16:
        x = min(x, n - 16)
        store_transposed16(columns, 8 * x, rows, x, n)
        x += 16
    for i in range(x, n):
        for k in range(8):
            columns[8 * i + k] = rows[k * n + i]


@kernel
def _horizontal_pass_fixed(columns, starts, fixed, taps, transposed):
    """The horizontal pass on eight rows: to `transposed`, eight q8.8 for each channel and output column."""
    size = starts.size
    for x in range(size):
        r = g = b = splat_u16x8(taps // 2)
        at = 24 * starts[x]
        for t in range(taps):
            w = fixed[x, t]
            r = add_weighted_u16x8(r, columns, at, w)
            g = add_weighted_u16x8(g, columns, at + 8, w)
            b = add_weighted_u16x8(b, columns, at + 16, w)
            at += 24
        store_u16x8(transposed, 8 * x, r)
        store_u16x8(transposed, 8 * (size + x), g)
        store_u16x8(transposed, 8 * (2 * size + x), b)


@kernel
def _crop_resize_float(source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes):
    """`crop_resize` in float32, four rows at a time."""
    high, wide = planes.shape[1:]
    stride, n = 3 * source.shape[1], 3 * width
    pitch, row = n + 8, 4 * (wide + 4)
    rows, pixels = scratch[: _ROWS * pitch], scratch[_ROWS * pitch : _ROWS * (pitch + row)]
    flat = source.reshape(-1)
    for first in range(0, high, _ROWS):
        y = min(first, high - _ROWS)  # the last four rows may be made twice
        for k in range(_ROWS):
            at = (top + y_starts[y + k]) * stride + 3 * left
            _vertical_pass(flat, at, stride, y_table, y + k, y_taps, n, rows, k * pitch)
        _horizontal_pass(rows, pitch, x_starts, x_taps, x_table, pixels)
        for k in range(_ROWS):
            _deinterleave(pixels, k * row, planes[0, y + k], planes[1, y + k], planes[2, y + k])
    levels = planes.reshape(-1)
    for k in range(levels.size):
        levels[k] = min(levels[k], np.float32(255))


@kernel
def crop_resize(source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes):
    """Resample a crop with a filter that has no negative weights (bilinear); the result is not rounded.

    Eight rows at a time, in q8.8: down the columns sixteen bytes a vector, transposed, then along the rows eight rows a
    vector. The rounding of a product is off by half a unit, for all of a filter in one direction where levels are
    alike: by (y_taps + x_taps) / 512 levels at most, that is 0.1 for reductions up to 12 both ways and 1 for those of
    128. Beyond `FIXED_TAPS` everything is done in float32, off by 0.1 level at most (reductions up to 8,000).

    Args:
        source: uint8 (H, W, 3).
        top: of the crop, pixels.
        left: of the crop, pixels.
        y_starts: int64 (S,), from `weights`, relative to the crop.
        y_taps: from `weights`.
        y_table: float32 (S or more, taps), from `weights`; overwritten.
        x_starts: int64 (T,).
        x_taps: from `weights`.
        x_table: float32 (T or more, taps); overwritten.
        width: of the crop, pixels.
        scratch: float32, at least `scratch_size(T, W)`.
        planes: float32 (3, S, T), S and T at least 8: the result, levels 0..255.
    """
    if max(y_taps, x_taps) > FIXED_TAPS:
        _crop_resize_float(
            source, top, left, y_starts, y_taps, y_table, x_starts, x_taps, x_table, width, scratch, planes
        )
        return
    high, wide = planes.shape[1:]
    stride, n = 3 * source.shape[1], 3 * width
    words = scratch.view(np.uint16)
    rows, columns, transposed = words[: 8 * n], words[8 * n : 16 * n], words[16 * n : 16 * n + 24 * wide]
    y_fixed, x_fixed = _to_fixed(y_table[:high], y_taps), _to_fixed(x_table[:wide], x_taps)
    flat, out = source.reshape(-1), planes.reshape(-1)
    base = top * stride + 3 * left
    y = 0
    while y < high:
        y = min(y, high - 8)  # the last eight rows may be made twice
        for k in range(8):
            _vertical_pass_fixed(flat, base + y_starts[y + k] * stride, stride, y_fixed, y + k, y_taps, n, rows, k * n)
        _transpose(rows, n, columns)
        _horizontal_pass_fixed(columns, x_starts, x_fixed, x_taps, transposed)
        for c in range(3):
            x = 0
            while x < wide:
                x = min(x, wide - 8)
                store_transposed_q8_8x8(out, (c * high + y) * wide + x, wide, transposed, 8 * (c * wide + x))
                x += 8
        y += 8


@kernel
def write_span(planes, y, x0, x1, out, at):
    """Round a part of a row of pixels to uint8 (R, G, B, R, ...), halves up.

    Args:
        planes: float32 (3, H, W), levels within 0..255.
        y: the row.
        x0: the first pixel.
        x1: the pixel after the last.
        out: uint8, flat.
        at: index in `out` of pixel 0 of the row.
    """
    high, wide = planes.shape[1:]
    flat = planes.reshape(-1)
    red, green, blue = y * wide, (high + y) * wide, (2 * high + y) * wide
    half = splat8(0.5)
    x = x0
    while x < x1 and x1 - x0 >= 8:  # the last eight may be written twice
        x = min(x, x1 - 8)
        store_rgb8(
            out, at + 3 * x, load8(flat, red + x) + half, load8(flat, green + x) + half, load8(flat, blue + x) + half
        )
        x += 8
    for i in range(x, x1):
        for c in range(3):
            out[at + 3 * i + c] = to_level(flat[(c * high + y) * wide + i])


@kernel
def resized(pixels, height, width):
    """Resize an image: bilinear, antialiased, rounded.

    Args:
        pixels: uint8 (H, W, 3).
        height: of the result, at least 8.
        width: of the result, at least 8.

    Returns:
        uint8 (height, width, 3).
    """
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
    """`crop_resize` for any filter, in float32 and in PIL's order.

    First along the rows, rounded and clipped to 0..255, then down the columns.

    Bicubic weights overshoot at hard edges, and what is clipped there is visible. `scratch`: at least `scratch_size(S,
    W, H)`.
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
            levels, row = flat[at : at + n], rows[k * pitch : k * pitch + n]  # LLVM vectorises what begins at 0
            for i in range(n):
                row[i] = np.float32(levels[i])
        _horizontal_pass(rows, pitch, x_starts, x_taps, x_table, pixels)
        for k in range(count):
            x = 0
            while x < 4 * size:
                x = min(x, 4 * size - 8)
                value = vmin(vmax(load8(pixels, k * wide + x) + half, low), high)
                store_u8x8(done, (first + k) * 4 * size + x, value)
                x += 8
    for y in range(size):
        _vertical_pass(done, (y_starts[y] - y_starts[0]) * 4 * size, 4 * size, y_table, y, y_taps, 4 * size, pixels, 0)
        _deinterleave(pixels, 0, planes[0, y], planes[1, y], planes[2, y])
    flat_planes = planes.reshape(-1)
    for k in range(flat_planes.size):
        flat_planes[k] = min(max(flat_planes[k], np.float32(0)), np.float32(255))
