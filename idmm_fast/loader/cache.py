"""Decoded images kept in memory: a JPEG is decoded the first time it is read, and its pixels are there from then on.

A memory file (memfd_create(2)) holds, for each row of a beton, a byte that says how far the row is, and the pixels that
the decoder made: batches are the same, bit for bit. It has no name in a file system, so a small /dev/shm is no limit,
and it ends with the last process that uses it, however that one ends. Other processes of the same user find it by its
link in /proc/PID/fd.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__, limits
from ..beton import Beton
from ..beton.encode import RAW_SHARE
from ..beton.format import JPG
from ..beton.read import row_numbers

# The byte of a row. A JPEG's goes from NEW to READY by way of BUSY, which one thread of all processes can set. Raw
# pixels need no place here; they are READY when their checksum is known to be right.
NEW, BUSY, READY = range(3)

MODES = ("auto", "none", "memory")

_ALIGNMENT = 64  # bytes, a cache line: no two images share one
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2  # linux/memfd.h; Python has none of these where it was built with an old glibc
_ADD_SEALS, _GET_SEALS, _SEAL_SHRINK, _SEAL_GROW = 1033, 1034, 2, 4  # linux/fcntl.h
_SEALS = _SEAL_SHRINK | _SEAL_GROW  # who maps the file can't lose a page of it


@dataclass(frozen=True, eq=False)
class ImageCache:
    """What is kept of the rows of a beton. Made by `open_cache`.

    Attributes:
        key: of which file, as long as it stays as it is; "" for no file.
        slot: int64 (rows,), where a row's pixels begin in `store`; of size 0 where that is.
        state: uint8 (rows,), NEW, BUSY or READY.
        store: uint8, flat; of size 0 where no pixels are kept.
        rows: int64 (n,), those that may be read with it.
        size: bytes that are kept of the rows that are read, once all are decoded.
        description: a few words for the first lines of a run; "" where there is nothing to say.
    """

    key: str
    slot: np.ndarray
    state: np.ndarray
    store: np.ndarray
    rows: np.ndarray
    size: int = 0
    description: str = ""

    @classmethod
    def none(cls, rows: int, key: str = "", description: str = "") -> "ImageCache":
        """No pixels are kept; only which raw rows have the right checksum."""
        none = np.empty(0, np.uint8)
        no_rows = np.empty(0, np.int64)
        return cls(key, no_rows, np.zeros(rows, np.uint8), none, no_rows, description=description)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(slot, state, store), arguments of `render_batch`."""
        return self.slot, self.state, self.store

    def for_rows(self, beton: Beton, rows: np.ndarray) -> "ImageCache":
        """This cache; one that keeps nothing, with a warning, where the file is another one than when it was opened.

        Raises:
            ValueError: it is not of all `rows` (int64 (n,)): for the others no memory was taken.
        """
        if self.key != cache_key(beton):
            if self.store.size:
                warnings.warn(f"the cache is not of {beton.path} as it is now, and is not used", stacklevel=3)
            return ImageCache.none(len(beton))
        if self.store.size and not np.isin(rows, self.rows).all():
            raise ValueError(f"the cache is not of all rows of {beton.path} that are read; open it for these rows")
        return self


def cache_key(beton: Beton) -> str:
    """The name of the cache of a beton: of this very file, by this environment's decoder."""
    found = os.stat(beton.path)
    file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, beton.table_checksum)
    return "idmm-" + hashlib.sha256(repr((file, __version__, sys.prefix)).encode()).hexdigest()[:32]


def open_cache(beton: Beton, rows: Any = None, mode: str = "auto", passes: int = 2, beside: int = 0) -> ImageCache:
    """The cache of a beton: the one that a process of this user has, else a new one.

    Args:
        beton: the images.
        rows: those that are read, see `row_numbers`.
        mode: "auto": keep pixels where they take at most an eighth of the memory that this process may use; "memory":
            wherever they take at most half of what is free; "none": never.
        passes: how often the rows are read; a cache pays from 2 on.
        beside: bytes of other caches of this process, which the eighth holds too.

    Returns:
        The cache, with its own description: where no pixels are kept it says why.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"the mode of a cache is one of {', '.join(MODES)}, not '{mode}'")
    if sys.platform != "linux":
        none = "" if mode == "none" else "JPEGs are decoded in every epoch: they are kept on Linux only"
        return ImageCache.none(len(beton), cache_key(beton), none)
    sizes = beton.height * beton.width * 3 * (beton.mode == JPG)
    chosen = np.unique(row_numbers(rows, beton))
    needed = int(sizes[chosen].sum())
    if mode == "none" or passes < 2 or not needed:
        return ImageCache.none(len(beton), cache_key(beton))
    slots = np.cumsum(-(-np.append(len(beton), sizes) // _ALIGNMENT) * _ALIGNMENT)
    key, length = cache_key(beton), int(slots[-1])
    try:
        with _alone(key), contextlib.ExitStack() as stack:
            file, unreachable = _find(key, length)
            found = file is not None
            if file is not None:
                stack.callback(os.close, file)
            # Which rows have memory already is not told: so many bytes surely are of these rows.
            taken = os.fstat(file).st_blocks * 512 + needed - length if file is not None else 0
            refusal = _refusal(needed, max(0, taken), mode, beside)
            if refusal:
                return ImageCache.none(len(beton), key, refusal)
            if file is None:
                file = _create(key, length)
                stack.callback(os.close, file)
            _take(file, slots, chosen)
            memory = mmap.mmap(file, length)  # it has a descriptor of its own
    except (OSError, ValueError, OverflowError) as error:  # mmap's own errors
        return ImageCache.none(len(beton), key, f"JPEGs are decoded in every epoch: no memory is to be had ({error})")
    store = np.frombuffer(memory, np.uint8)  # the mapping, and with it the file, ends with the last array on it
    description = f"JPEGs are decoded once, into {_gigabytes(needed)} of memory"
    if found:
        description += " that is there already"
    elif unreachable:
        description += f" of this process alone: {unreachable}"
    return ImageCache(key, slots[:-1].astype(np.int64), store[: len(beton)], store, chosen, needed, description)


def _refusal(needed: int, taken: int, mode: str, beside: int) -> str:
    """Why `needed` bytes, of which a memory file has `taken` already, are not kept; "" if they are."""
    most, what = limits.free_memory() / 2 + taken, "half of what is free"
    share = RAW_SHARE * limits.memory_bytes() - beside
    if mode == "auto" and share < most:
        most, what = max(0, share), "an eighth of memory" + (", less what other images take" if beside else "")
    if needed <= max(most, taken):
        return ""
    return (
        f"JPEGs are decoded in every epoch: their pixels take {_gigabytes(needed)}, more than {_gigabytes(most)} "
        f"({what}; data.cache={mode})"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GB" if size >= 2**30 else f"{size / 2**20:.3g} MB"


@contextlib.contextmanager
def _alone(key: str) -> Iterator[None]:
    """Only one process at a time makes the cache `key`: all others of a run find it then.

    The lock is a socket's abstract name (unix(7)): one process has it, and it is free again when that process ends.
    After five seconds the block runs without it; at worst two processes make a cache each.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        for _ in range(500):
            try:
                lock.bind(f"\0{key}")
                break
            except OSError:
                time.sleep(0.01)
        yield


def _find(key: str, length: int) -> tuple[int | None, str]:
    """(The memory file `key` of a process of this user, opened; why one can't be had, "" if there is none)."""
    why = ""
    for process in filter(str.isdigit, os.listdir("/proc")):
        folder = f"/proc/{process}/fd"
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):  # ended, or somebody else's
            for number in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if os.readlink(f"{folder}/{number}") != f"/memfd:{key} (deleted)":
                        continue
                    try:
                        return _open(f"{folder}/{number}", length), ""
                    except OSError as error:
                        why = f"that of process {process} can't be used ({error})"
    return None, why


def _open(path: str, length: int) -> int:
    """Open a memory file. Raises OSError: it is somebody else's, of another length, or could be cut short."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if (
            status.st_uid != os.geteuid()
            or status.st_size != length
            or fcntl.fcntl(file, _GET_SEALS) & _SEALS != _SEALS
        ):
            raise OSError("it was not made by this program")
    except BaseException:
        os.close(file)
        raise
    return file


def _create(key: str, length: int) -> int:
    """A new memory file, all zeros."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "memfd_create"):
        raise OSError("memfd_create(2) needs glibc 2.27")
    file = libc.memfd_create(key.encode(), _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
    if file < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        os.ftruncate(file, length)
        fcntl.fcntl(file, _ADD_SEALS, _SEALS)
    except BaseException:
        os.close(file)
        raise
    return file


def _take(file: int, slots: np.ndarray, rows: np.ndarray) -> None:
    """Take the memory of all states and of these rows' pixels now: where there is none, no later write ends in SIGBUS.

    Args:
        file: the memory file.
        slots: int64 (rows of the beton + 1,), where the pixels of each begin, and the end.
        rows: int64 (n,), sorted.
    """
    os.posix_fallocate(file, 0, int(slots[0]))
    for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):  # neighbours in one call
        start, end = int(slots[part[0]]), int(slots[part[-1] + 1])
        if end > start:
            os.posix_fallocate(file, start, end - start)
