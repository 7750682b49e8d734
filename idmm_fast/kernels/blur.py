"""Gaussian blur of float32 planes (3, S, S), in place: separable, cut at 3 sigma, the edge pixel repeated beyond the edge.

In fixed point: a level is 128 units of a uint16, so that the sum of two levels fits; off by 0.1 level at most.
PIL's GaussianBlur, which the published recipe uses, approximates the same Gaussian with three box filters.
"""

import math

import numpy as np

from .jit import kernel
from .simd import (
    add_pairs16,
    add_shorts16,
    load8,
    load_shorts8,
    load_units8,
    shorts16,
    store8,
    store_shorts8,
    store_shorts16,
    store_units8,
)

MAX_RADIUS = 24  # 3 sigma of the largest sigma that Augment admits
LEAST_SIGMA = 0.23  # below it no level moves by more than 0.1
_BLOCK = 64  # what _convolve makes at a time, and so what there must be room for beyond the end


def blur_scratch_size(size):
    """Floats of scratch that `gaussian_blur` needs."""
    return MAX_RADIUS + 1 + (size + 2 * MAX_RADIUS) ** 2 + 2 * (_BLOCK + MAX_RADIUS)


@kernel
def _fixed_weights(sigma, radius, weights):
    """The Gaussian at 0 .. radius, as int32 whose sum over both sides is 65,536."""
    total = 0.0
    for k in range(-radius, radius + 1):
        total += math.exp(-0.5 * (k / sigma) ** 2)
    rest = 65536
    for k in range(1, radius + 1):
        weights[k] = int(65536 * math.exp(-0.5 * (k / sigma) ** 2) / total + 0.5)
        rest -= 2 * weights[k]
    weights[0] = min(rest, 65535)


@kernel
def _convolve(source, at, step, weights, radius, n, out, to):
    """n uint16 from index `to` of `out` on, and up to 63 more: the weighted sums of those from `at` on in `source` and their neighbours,
    1 .. radius times `step` away on both sides. Sums stay in registers."""
    for x in range(0, n, _BLOCK):
        p = q = at + x
        w = weights[0]
        a = b = c = d = shorts16((radius + 1) // 2)  # products are rounded down, on average by a half
        a = add_shorts16(a, source, p, w)
        b = add_shorts16(b, source, p + 16, w)
        c = add_shorts16(c, source, p + 32, w)
        d = add_shorts16(d, source, p + 48, w)
        for k in range(1, radius + 1):
            p -= step
            q += step
            w = weights[k]
            a = add_pairs16(a, source, p, q, w)
            b = add_pairs16(b, source, p + 16, q + 16, w)
            c = add_pairs16(c, source, p + 32, q + 32, w)
            d = add_pairs16(d, source, p + 48, q + 48, w)
        store_shorts16(out, to + x, a)
        store_shorts16(out, to + x + 16, b)
        store_shorts16(out, to + x + 32, c)
        store_shorts16(out, to + x + 48, d)


@kernel
def _pad(flat, first, size, radius, out, at):
    """A row of `flat` in units, with its edge pixels repeated `radius` times, from `at` of `out` on."""
    left = shorts16(int(flat[first] * np.float32(128) + np.float32(0.5)))
    right = shorts16(int(flat[first + size - 1] * np.float32(128) + np.float32(0.5)))
    for x in range(0, radius, 16):  # what is too much is written over: by the pixels, by the next row
        store_shorts16(out, at + x, left)
    at += radius
    x = 0
    while x < size:
        x = min(x, size - 8)
        store_units8(out, at + x, load8(flat, first + x))
        x += 8
    for x in range(0, radius, 16):
        store_shorts16(out, at + size + x, right)


@kernel
def _copy(units, at, n, to):
    x = 0
    while x < n:
        x = min(x, n - 8)
        store_shorts8(units, to + x, load_shorts8(units, at + x))
        x += 8


@kernel
def gaussian_blur(planes, sigma, scratch):
    """`sigma` in pixels, at most 8; S at least 8. `scratch`: float32, at least `blur_scratch_size(S)`."""
    if sigma < LEAST_SIGMA:
        return
    size = planes.shape[1]
    radius = int(math.ceil(3.0 * sigma))
    weights = scratch[: MAX_RADIUS + 1].view(np.int32)
    _fixed_weights(sigma, radius, weights)
    units = scratch[MAX_RADIUS + 1 :].view(np.uint16)
    pitch = size + 2 * radius
    wide = MAX_RADIUS  # rows with room at both ends; the whole plane is convolved as one row, and their ends make what nobody reads
    high = wide + size * pitch + _BLOCK + MAX_RADIUS  # the same with rows above and below
    top, bottom = high + radius * pitch, high + (radius + size - 1) * pitch
    flat = planes.reshape(-1)
    for c in range(3):
        for y in range(size):
            _pad(flat, (c * size + y) * size, size, radius, units, wide + y * pitch)
        _convolve(units, wide, 1, weights, radius, size * pitch, units, top)
        for k in range(radius):
            _copy(units, top, pitch, high + k * pitch)
            _copy(units, bottom, pitch, bottom + (k + 1) * pitch)
        _convolve(units, top, pitch, weights, radius, size * pitch, units, wide)
        for y in range(size):
            row, at = (c * size + y) * size, wide + y * pitch + radius
            x = 0
            while x < size:
                x = min(x, size - 8)
                store8(flat, row + x, load_units8(units, at + x))
                x += 8
