"""A checksum that costs next to nothing beside decoding: four lanes of multiply and xor over 64-bit words.

It is there to find damage, not malice: every change of a single word changes it, any other but for one in 2^64. Against
malice there is the SHA-256 in the sidecar.
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..kernels.jit import kernel

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


@intrinsic
def _word(typing, data, index):
    """The 64-bit word that starts at byte `index` of `data` (uint8, 1-d), little-endian."""

    def code(context, builder, signature, args):
        start = context.make_array(signature.args[0])(context, builder, args[0]).data
        at = builder.bitcast(builder.gep(start, [args[1]]), cgutils.ir.IntType(64).as_pointer())
        return builder.load(at, align=1)

    return types.uint64(data, types.intp), code


@kernel(inline=True)
def _step(lane, word):
    lane = (lane ^ word) * _PRIME
    return lane ^ (lane >> _SHIFT)


@kernel
def checksum(data):
    """uint64 of `data` (uint8, 1-d, contiguous)."""
    n = data.size
    a, b, c, d = np.uint64(n), np.uint64(1), np.uint64(2), np.uint64(3)
    k = 0
    while k + 32 <= n:
        a = _step(a, _word(data, k))
        b = _step(b, _word(data, k + 8))
        c = _step(c, _word(data, k + 16))
        d = _step(d, _word(data, k + 24))
        k += 32
    for i in range(k, n):
        a = _step(a, np.uint64(data[i]))
    return _step(_step(_step(a, b), c), d)


@kernel
def checksums(file, ptr, length, out):
    """out[i] (uint64) = checksum of file[ptr[i] : ptr[i] + length[i]]."""
    for i in range(ptr.size):
        out[i] = checksum(file[ptr[i] : ptr[i] + length[i]])


def tables_sum(tables, sums, allocations):
    """One uint64 over everything in a beton that is not a sample's bytes: header to samples' table (bytes), sums, allocation table."""
    parts = [np.frombuffer(tables, np.uint8), sums.view(np.uint8), allocations.view(np.uint8)]
    return checksum(np.array([checksum(np.ascontiguousarray(p)) for p in parts], np.uint64).view(np.uint8))
