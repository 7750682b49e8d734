"""One process at a time: a lock on a file. It ends with the process that holds it, however that process ends."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from pathlib import Path

from .errors import Locked

__all__ = ["Lock", "Locked"]

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems


class Lock:
    """Holds a lock until `close`, or until the end of a `with` block. A file system without locks gives none.

    Args:
        path: the lock's file. It is made here, in a folder that must exist, and removed by `close`.
        what: what is locked, for messages.
        wait: wait for the process that holds the lock, with a message, instead of raising Locked.

    Raises:
        Locked: another process holds the lock.
        OSError: the file can't be made.
    """

    def __init__(self, path: str | Path, what: str, wait: bool = False) -> None:
        self.path = Path(path)
        while True:
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  held until close
            try:
                self._acquire(what, wait)
            except BaseException:
                self._file.close()
                raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                    break
            self._file.close()  # its holder removed it while this process waited: what is there now is another file
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def _acquire(self, what: str, wait: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            in_use = f"{what} is in use by {self._file.read() or 'another process'}"
            if not wait:
                raise Locked(f"{in_use}; wait until it has ended, or name another place") from None
            print(f"{in_use}; waiting for it", file=sys.stderr)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        if not self._file.closed:
            # Removed before it is released, so that nobody takes a file that is about to vanish.
            self.path.unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
