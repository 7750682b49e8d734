"""One process at a time: a lock on a file, which ends with the process that holds it, however that one ends."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from pathlib import Path

from .errors import Locked

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems


class Lock:
    """Holds the lock `path`, a file that is made for it and removed by `close`, or at the end of a `with` block.

    what: what is locked, for messages. wait: wait for whoever holds it, and say so, instead of raising Locked. Where the file system has no
    locks there is none. Raises Locked, and OSError where the file can't be made. Its folder must exist.
    """

    def __init__(self, path, what, wait=False):
        self.path = Path(path)
        while True:
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  held until close
            try:
                self._take(what, wait)
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

    def _take(self, what, wait):
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            said = f"{what} is in use by {self._file.read() or 'another process'}"
            if not wait:
                raise Locked(f"{said}; wait until it has ended, or name another place") from None
            print(f"{said}; waiting for it", file=sys.stderr)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def close(self):
        """Let go of it. A second call does nothing."""
        if not self._file.closed:
            self.path.unlink(
                missing_ok=True
            )  # before it is let go of, so that nobody takes a file that is about to vanish
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
