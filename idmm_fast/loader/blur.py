"""Gaussian blur of float32 planes (3, S, S), in place: separable, cut at 3 sigma, the edge pixel repeated beyond the edge.

PIL's GaussianBlur, which the published recipe uses, approximates the same Gaussian with three box filters.
"""

import math

import numpy as np

from ..jit import kernel

MAX_RADIUS = 24  # 3 sigma of the largest sigma that Augment admits


def blur_scratch_size(size):
    """Floats of scratch that `gaussian_blur` needs."""
    return size * size + size + 2 * MAX_RADIUS


@kernel
def gaussian_blur(planes, sigma, scratch):
    """`sigma` in pixels, at most 8. `scratch`: float32, at least `blur_scratch_size(S)`.

    Two pairs of taps a time, over whole rows: the loops over x are what LLVM turns into vector code.
    """
    size = planes.shape[1]
    radius = max(1, int(math.ceil(3.0 * sigma)))
    weights = np.zeros(MAX_RADIUS + 2, dtype=np.float32)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(radius + 1):
        weights[k] = math.exp(-0.5 * (k / sigma) ** 2) / total
    padded = scratch[: size + 2 * radius]
    middle = padded[radius : radius + size]
    done = scratch[size + 2 * MAX_RADIUS : size + 2 * MAX_RADIUS + size * size].reshape(size, size)
    w0 = weights[0]
    for c in range(3):
        plane = planes[c]
        for y in range(size):
            line = plane[y]
            for x in range(size):
                middle[x] = w0 * line[x]
            for k in range(1, radius + 1, 2):  # along y; the weight beyond the last is 0
                w1, w2 = weights[k], weights[k + 1]
                a, b = plane[max(y - k, 0)], plane[min(y + k, size - 1)]
                d, e = plane[max(y - k - 1, 0)], plane[min(y + k + 1, size - 1)]
                for x in range(size):
                    middle[x] += w1 * (a[x] + b[x]) + w2 * (d[x] + e[x])
            for x in range(radius):
                padded[x] = middle[0]
                padded[radius + size + x] = middle[size - 1]
            line = done[y]
            for x in range(size):
                line[x] = w0 * middle[x]
            for k in range(1, radius + 1, 2):  # along x
                w1, w2 = weights[k], weights[k + 1]
                far = min(k + 1, radius)
                a, b = padded[radius - k : radius - k + size], padded[radius + k : radius + k + size]
                d, e = padded[radius - far : radius - far + size], padded[radius + far : radius + far + size]
                for x in range(size):
                    line[x] += w1 * (a[x] + b[x]) + w2 * (d[x] + e[x])
        plane[:] = done
