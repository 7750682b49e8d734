"""Gaussian blur of float32 planes (3, S, S), in place: separable, cut at 3 sigma, the edge pixel repeated beyond the edge.

PIL's GaussianBlur, which the published recipe uses, approximates the same Gaussian with three box filters.
"""

import math

from ..jit import kernel
from .simd import load8, multiply_add, splat8, store8

MAX_RADIUS = 24  # 3 sigma of the largest sigma that Augment admits


def blur_scratch_size(size):
    """Floats of scratch that `gaussian_blur` needs."""
    return MAX_RADIUS + 1 + 2 * size * (size + 2 * MAX_RADIUS)


@kernel
def _copy(source, at, n, out, to):
    x = 0
    while x < n:
        x = min(x, n - 8)
        store8(out, to + x, load8(source, at + x))
        x += 8


@kernel
def _convolve(source, at, step, weights, radius, n, out, to):
    """n floats from index `to` of `out`: the weighted sums of those from `at` on in `source` and their neighbours, 1 .. radius
    times `step` away on both sides. Sums stay in registers; the last eight may be made twice."""
    x = 0
    while x + 32 <= n:
        p = q = at + x
        w = splat8(weights[0])
        a = w * load8(source, p)
        b = w * load8(source, p + 8)
        c = w * load8(source, p + 16)
        d = w * load8(source, p + 24)
        for k in range(1, radius + 1):
            p -= step
            q += step
            w = splat8(weights[k])
            a = multiply_add(w, load8(source, p) + load8(source, q), a)
            b = multiply_add(w, load8(source, p + 8) + load8(source, q + 8), b)
            c = multiply_add(w, load8(source, p + 16) + load8(source, q + 16), c)
            d = multiply_add(w, load8(source, p + 24) + load8(source, q + 24), d)
        store8(out, to + x, a)
        store8(out, to + x + 8, b)
        store8(out, to + x + 16, c)
        store8(out, to + x + 24, d)
        x += 32
    while x < n:
        x = min(x, n - 8)
        p = q = at + x
        a = splat8(weights[0]) * load8(source, p)
        for k in range(1, radius + 1):
            p -= step
            q += step
            a = multiply_add(splat8(weights[k]), load8(source, p) + load8(source, q), a)
        store8(out, to + x, a)
        x += 8


@kernel
def gaussian_blur(planes, sigma, scratch):
    """`sigma` in pixels, at most 8; S at least 8. `scratch`: float32, at least `blur_scratch_size(S)`."""
    size = planes.shape[1]
    radius = max(1, int(math.ceil(3.0 * sigma)))
    total = 0.0
    for k in range(-radius, radius + 1):
        total += math.exp(-0.5 * (k / sigma) ** 2)
    weights = scratch[: MAX_RADIUS + 1]
    for k in range(radius + 1):
        weights[k] = math.exp(-0.5 * (k / sigma) ** 2) / total
    wide, high = (
        weights.size,
        weights.size + size * (size + 2 * MAX_RADIUS),
    )  # rows with room at both ends; rows above and below
    pitch = size + 2 * radius
    flat = planes.reshape(-1)
    for c in range(3):
        plane = c * size * size
        for y in range(size):  # all rows before any is read: what was just written can't be read out of step at once
            at, source = wide + y * pitch, plane + y * size
            first, end = flat[source], flat[source + size - 1]
            for x in range(radius):
                scratch[at + x] = first
                scratch[at + radius + size + x] = end
            _copy(flat, source, size, scratch, at + radius)
        for y in range(size):
            _convolve(scratch, wide + y * pitch + radius, 1, weights, radius, size, scratch, high + (radius + y) * size)
        top, bottom = high + radius * size, high + (radius + size - 1) * size
        for k in range(radius):
            _copy(scratch, top, size, scratch, high + k * size)
            _copy(scratch, bottom, size, scratch, bottom + (k + 1) * size)
        for y in range(size):
            _convolve(scratch, high + (radius + y) * size, size, weights, radius, size, flat, plane + y * size)
