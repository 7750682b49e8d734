"""Files that are written whole or not at all, and their SHA-256."""

import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREDICTION_ENDINGS = (".csv", ".json", ".parquet")


def sha256(path: str | Path, progress: Callable[[int], object] | None = None) -> str:
    """The SHA-256 of a file.

    Args:
        path: the file.
        progress: called with the number of bytes of each block that was read.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    block = bytearray(1 << 20)  # stays in the processor's cache
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
            if progress:
                progress(count)
    return digest.hexdigest()


def sync(path: str | Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str | Path, *, unique: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all: `with replacing(path) as temporary:` write to `temporary`.

    When the block ends, the temporary file is synced to the disk and renamed to `path`, in one step for every reader.
    When the block raises, it is removed, and `path` is what it was before.

    Args:
        path: the final name. Its folder must exist.
        unique: whether the temporary name has the process and the thread in it, so that two writers do not disturb
            each other. False where a lock keeps others away: the name is `path` + ".tmp", and what a killed process
            left is overwritten.

    Yields:
        The temporary name, in the same folder. It ends in ".tmp".

    Raises:
        OSError: the file can't be written.
    """
    path = Path(path)
    temporary = _temporary(path) if unique else path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A temporary name of a file that no other writer has."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")


def check_target(path: str | Path) -> None:
    """Refuse a file that can't be written, before the work for it is done. Its folder is made if it is not there.

    Raises:
        OSError: it is a folder, or its folder can't be made or written to; the message says which.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _temporary(path).touch()
        _temporary(path).unlink()
    except FileExistsError:
        raise NotADirectoryError(f"{path} can't be written: {path.parent} is no folder") from None
    except OSError as error:
        raise type(error)(f"{path} can't be written: {error.strerror or error}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. The folder of `path` is made if it is not there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def load_or_compute(path: str | Path, compute: Callable[[], Any]) -> Any:
    """What the JSON file `path` holds. Where there is none, the result of `compute()` is written to it first."""
    if not Path(path).exists():
        write_json(path, compute())
    return json.loads(Path(path).read_text(encoding="utf-8"))


def first_free(path: Path) -> Path:
    """The first of PATH_1, PATH_2, ... that does not exist."""
    names = (path.with_name(f"{path.name}_{k}") for k in itertools.count(1))
    return next(name for name in names if not name.exists())
