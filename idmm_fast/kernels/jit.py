"""How every kernel is compiled: without the GIL, and cached on disk.

numba's cache notices a change in the file that holds a function, not one in the functions it calls from other files,
and would go on running the old machine code after an update. So the key of the cache is a digest of all files of the
package that hold kernels or the vector operations that they are made of, in whatever room.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import numba
from numba.core.caching import IndexDataCacheFile

from ..limits import cache_folder

# Installed where this user can't write, who may have no home either.
if not (numba.config.CACHE_DIR or os.access(Path(__file__).parent, os.W_OK)):
    with contextlib.suppress(OSError):
        numba.config.CACHE_DIR = str(cache_folder() / "kernels")

# No reassociation of sums: the same image gives the same bytes on all machines of one architecture and library version.
_FAST = {"contract", "nsz", "arcp"}


_CONSTANTS = ("beton/format.py", "loader/cache.py")  # of these, some are compiled in


def _stamp(package=Path(__file__).parent.parent):
    """The digest of numba's version and of every file below `package` that kernels are compiled from."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        named = path.relative_to(package).as_posix() in _CONSTANTS
        if named or b"@kernel" in source or b"@intrinsic" in source:
            digest.update(source)
    return digest.hexdigest()


_STAMP = _stamp()


def kernel(function=None, *, inline=False):
    """Compile with numba: nopython, no GIL, C division rules, cached on disk across processes. A decorator.

    Args:
        function: what to compile; None where the decorator has arguments.
        inline: whether numba inlines it into its callers.
    """
    if function is None:
        return lambda f: kernel(f, inline=inline)
    compiled = numba.njit(nogil=True, fastmath=_FAST, error_model="numpy", inline="always" if inline else "never")(
        function
    )
    try:
        compiled.enable_caching()
        cache = compiled._cache
        cache._cache_file = IndexDataCacheFile(cache.cache_path, cache._impl.filename_base, _STAMP)
    except (RuntimeError, OSError):
        pass  # no place to write a cache: the kernels are compiled anew in each process
    return compiled


def is_cached(compiled):
    """Whether machine code of this kernel, made of these sources, is on disk already."""
    try:
        return bool(compiled._cache._cache_file._load_index())
    except (AttributeError, OSError, EOFError):
        return False


@kernel(inline=True)
def to_level(value):
    """Round a float in 0..255 to uint8, halves up, as PIL does; values outside are clamped."""
    return numba.uint8(min(max(value + numba.float32(0.5), numba.float32(0.0)), numba.float32(255.0)))
