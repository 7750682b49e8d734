"""Gaussian blur of float32 planes (3, S, S), in place: separable, cut at 3 sigma.

The edge pixel is repeated beyond the edge. Computed in q9.7 (see `simd`), off by 0.1 level at most. The published
recipe uses PIL's GaussianBlur, which approximates the same Gaussian with three box filters.
"""

import math

import numpy as np

from .jit import kernel
from .simd import (
    add_weighted_pairs_u16x16,
    add_weighted_u16x16,
    load8,
    load_q9_7x8,
    load_u16x8,
    splat_u16x16,
    store8,
    store_q9_7x8,
    store_u16x8,
    store_u16x16,
)

MAX_RADIUS = 24  # 3 sigma of the largest sigma that Augment admits
MIN_SIGMA = 0.23  # below it no level moves by more than 0.1
_BLOCK = 64  # what _convolve makes at a time, and so what there must be room for beyond the end


def blur_scratch_size(size):
    """How many float32 of scratch `gaussian_blur` needs for planes of `size` x `size` pixels."""
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
    """Weighted sums of n uint16 from index `at` on and their neighbours, to index `to` of `out` and on.

    Up to 63 more are written. The neighbours are 1 .. radius times `step` away on both sides. Sums stay in registers.
    """
    for x in range(0, n, _BLOCK):
        p = q = at + x
        w = weights[0]
        a = b = c = d = splat_u16x16((radius + 1) // 2)  # products are rounded down, on average by a half
        a = add_weighted_u16x16(a, source, p, w)
        b = add_weighted_u16x16(b, source, p + 16, w)
        c = add_weighted_u16x16(c, source, p + 32, w)
        d = add_weighted_u16x16(d, source, p + 48, w)
        for k in range(1, radius + 1):
            p -= step
            q += step
            w = weights[k]
            a = add_weighted_pairs_u16x16(a, source, p, q, w)
            b = add_weighted_pairs_u16x16(b, source, p + 16, q + 16, w)
            c = add_weighted_pairs_u16x16(c, source, p + 32, q + 32, w)
            d = add_weighted_pairs_u16x16(d, source, p + 48, q + 48, w)
        store_u16x16(out, to + x, a)
        store_u16x16(out, to + x + 16, b)
        store_u16x16(out, to + x + 32, c)
        store_u16x16(out, to + x + 48, d)


@kernel
def _pad(flat, first, size, radius, out, at):
    """A row of `flat` as q9.7, with its edge pixels repeated `radius` times, from index `at` of `out` on."""
    left = splat_u16x16(int(flat[first] * np.float32(128) + np.float32(0.5)))
    right = splat_u16x16(int(flat[first + size - 1] * np.float32(128) + np.float32(0.5)))
    for x in range(0, radius, 16):  # what is too much is written over: by the pixels, by the next row
        store_u16x16(out, at + x, left)
    at += radius
    x = 0
    while x < size:
        x = min(x, size - 8)
        store_q9_7x8(out, at + x, load8(flat, first + x))
        x += 8
    for x in range(0, radius, 16):
        store_u16x16(out, at + size + x, right)


@kernel
def _copy(fixed, at, n, to):
    """n of `fixed` from index `at` on, copied to index `to`; n is at least 8."""
    x = 0
    while x < n:
        x = min(x, n - 8)
        store_u16x8(fixed, to + x, load_u16x8(fixed, at + x))
        x += 8


@kernel
def gaussian_blur(planes, sigma, scratch):
    """Blur `planes` in place; a sigma below MIN_SIGMA does nothing.

    Args:
        planes: float32 (3, S, S), levels 0..255, S at least 8.
        sigma: of the Gaussian, pixels, 0..8.
        scratch: float32, at least `blur_scratch_size(S)`.
    """
    if sigma < MIN_SIGMA:
        return
    size = planes.shape[1]
    radius = int(math.ceil(3.0 * sigma))
    weights = scratch[: MAX_RADIUS + 1].view(np.int32)
    _fixed_weights(sigma, radius, weights)
    fixed = scratch[MAX_RADIUS + 1 :].view(np.uint16)
    pitch = size + 2 * radius
    # Rows with room at both ends. The whole plane is convolved as one row; what the ends make is not read.
    wide = MAX_RADIUS
    high = wide + size * pitch + _BLOCK + MAX_RADIUS  # the same with rows above and below
    top, bottom = high + radius * pitch, high + (radius + size - 1) * pitch
    flat = planes.reshape(-1)
    for c in range(3):
        for y in range(size):
            _pad(flat, (c * size + y) * size, size, radius, fixed, wide + y * pitch)
        _convolve(fixed, wide, 1, weights, radius, size * pitch, fixed, top)
        for k in range(radius):
            _copy(fixed, top, pitch, high + k * pitch)
            _copy(fixed, bottom, pitch, bottom + (k + 1) * pitch)
        _convolve(fixed, top, pitch, weights, radius, size * pitch, fixed, wide)
        for y in range(size):
            row, at = (c * size + y) * size, wide + y * pitch + radius
            x = 0
            while x < size:
                x = min(x, size - 8)
                store8(flat, row + x, load_q9_7x8(fixed, at + x))
                x += 8
