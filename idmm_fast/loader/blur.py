"""Gaussian blur of float32 planes (3, S, S), in place: separable, cut at 4 sigma, the edge pixel repeated beyond the edge.

PIL's GaussianBlur, which the published recipe uses, approximates the same Gaussian with three box filters.
"""

import math

import numpy as np

from ..jit import kernel

MAX_RADIUS = 32  # 4 sigma of the largest sigma that Augment admits


@kernel
def gaussian_blur(planes, sigma, line):
    """`sigma` in pixels. `line` is scratch: float32, at least (S + 2 * MAX_RADIUS) * S."""
    size = planes.shape[1]
    radius = int(math.ceil(4.0 * sigma))
    taps = np.empty(2 * MAX_RADIUS + 1, dtype=np.float32)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(-radius, radius + 1):
        taps[k + radius] = math.exp(-0.5 * (k / sigma) ** 2) / total
    padded = line[: size + 2 * radius]
    for c in range(3):
        for y in range(size):  # along x: the row with its ends repeated, then one tap at a time over the whole row
            row = planes[c, y]
            for x in range(radius):
                padded[x] = row[0]
                padded[size + radius + x] = row[size - 1]
            for x in range(size):
                padded[radius + x] = row[x]
            w = taps[radius]
            for x in range(size):
                row[x] = w * padded[radius + x]
            for k in range(radius):
                w = taps[k]
                for x in range(size):
                    row[x] += w * (padded[x + k] + padded[x + 2 * radius - k])
        plane = line[: size * size].reshape(size, size)
        for y in range(size):
            for x in range(size):
                plane[y, x] = planes[c, y, x]
        for y in range(size):  # along y: whole rows at once
            row = planes[c, y]
            w = taps[radius]
            centre = plane[y]
            for x in range(size):
                row[x] = w * centre[x]
            for k in range(1, radius + 1):
                w = taps[radius + k]
                above, below = plane[max(y - k, 0)], plane[min(y + k, size - 1)]
                for x in range(size):
                    row[x] += w * (above[x] + below[x])
