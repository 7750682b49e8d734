"""A checksum that costs next to nothing beside decoding: four lanes of multiply and xor over 64-bit words.

It finds damage, not malice: every change of a single word changes it, any other but for one in 2^64. Against malice
there is the SHA-256 in the sidecar.
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
def _mix(lane, word):
    lane = (lane ^ word) * _PRIME
    return lane ^ (lane >> _SHIFT)


@kernel
def checksum(data: np.ndarray) -> np.uint64:
    """uint64 of `data` (uint8, 1-d, contiguous)."""
    n = data.size
    a, b, c, d = np.uint64(n), np.uint64(1), np.uint64(2), np.uint64(3)
    k = 0
    while k + 32 <= n:
        a = _mix(a, _word(data, k))  # type: ignore[call-arg]  # numba gives the first argument
        b = _mix(b, _word(data, k + 8))
        c = _mix(c, _word(data, k + 16))
        d = _mix(d, _word(data, k + 24))
        k += 32
    for i in range(k, n):
        a = _mix(a, np.uint64(data[i]))
    return _mix(_mix(_mix(a, b), c), d)


@kernel
def checksums(file: np.ndarray, ptr: np.ndarray, length: np.ndarray, out: np.ndarray) -> None:
    """Checksums of parts of a file.

    Args:
        file: uint8, 1-d.
        ptr: int64 (n,), where the parts begin.
        length: int64 (n,), bytes.
        out: uint64 (n,), filled.
    """
    for i in range(ptr.size):
        out[i] = checksum(file[ptr[i] : ptr[i] + length[i]])


def table_checksum(tables: bytes, sums: np.ndarray, allocations: np.ndarray) -> int:
    """One uint64 over everything in a beton that is not a sample's bytes.

    Args:
        tables: from the header to the samples' table, with what fills it up.
        sums: uint64, the samples' checksums.
        allocations: ALLOCATION, the allocation table.
    """
    parts = [np.frombuffer(tables, np.uint8), sums.view(np.uint8), allocations.view(np.uint8)]
    return checksum(np.array([checksum(np.ascontiguousarray(p)) for p in parts], np.uint64).view(np.uint8))
