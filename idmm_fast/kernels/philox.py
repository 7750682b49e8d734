"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A sample is a pure function of (seed, counter), so any thread, process or later run can make it again. The counter is
(row or step, epoch, stream, block): for which image or batch, when, for which crop or purpose, and which of its values.
"""

import numba
import numpy as np

from .jit import kernel

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_2_POW_MINUS_32 = 1.0 / 4294967296.0

# Streams below these are the crops of an image; these are for a whole epoch or batch.
ORDER_STREAM = 1 << 25
MIXUP_STREAM = 1 << 26
CUTMIX_STREAM = 1 << 28  # and up to 2^31: a chunk's samples follow those of the chunk before


@kernel
def philox(seed, c0, c1, c2, c3):
    """Four random uint32.

    Args:
        seed: uint64, the key, low word first.
        c0: word of the counter, uint32.
        c1: word of the counter.
        c2: word of the counter.
        c3: word of the counter.
    """
    k0 = numba.uint32(numba.uint64(seed) & _LOW)
    k1 = numba.uint32(numba.uint64(seed) >> _32)
    x0, x1, x2, x3 = numba.uint32(c0), numba.uint32(c1), numba.uint32(c2), numba.uint32(c3)
    for _ in range(10):
        p0 = _M0 * numba.uint64(x0)
        p1 = _M1 * numba.uint64(x2)
        x0, x1, x2, x3 = (
            numba.uint32(p1 >> _32) ^ x1 ^ k0,
            numba.uint32(p1 & _LOW),
            numba.uint32(p0 >> _32) ^ x3 ^ k1,
            numba.uint32(p0 & _LOW),
        )
        k0 = numba.uint32(k0 + _W0)
        k1 = numba.uint32(k1 + _W1)
    return x0, x1, x2, x3


@kernel
def uniforms(seed, c0, c1, c2, c3):
    """Four float64 in the open interval (0, 1), from `philox`."""
    x0, x1, x2, x3 = philox(seed, c0, c1, c2, c3)
    return (
        (x0 + 0.5) * _2_POW_MINUS_32,
        (x1 + 0.5) * _2_POW_MINUS_32,
        (x2 + 0.5) * _2_POW_MINUS_32,
        (x3 + 0.5) * _2_POW_MINUS_32,
    )


@kernel
def permutation(seed, c0, c1, c2, n):
    """A uniformly random permutation of range(n), int64 (n,): Fisher and Yates' shuffle."""
    result = np.arange(n)
    u4 = (0.0, 0.0, 0.0, 0.0)
    for k in range(n - 1):
        i = n - 1 - k
        if k % 4 == 0:
            u4 = uniforms(seed, c0, c1, c2, k // 4)
        u = u4[0] if k % 4 == 0 else u4[1] if k % 4 == 1 else u4[2] if k % 4 == 2 else u4[3]
        j = min(int(u * (i + 1)), i)
        result[i], result[j] = result[j], result[i]
    return result
