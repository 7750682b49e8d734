"""Ctrl-C and SIGTERM: training stops between two steps, after a checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

from ..errors import Stopped
from ..runtime import distributed

STOPPING = "\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without one\n"


class SignalFlag:
    """Turns Ctrl-C and SIGTERM into a flag that the trainer looks at between two steps; a second Ctrl-C stops at once.

    Attributes:
        signal: number of the signal that came, 0 if none did.
    """

    def __enter__(self) -> SignalFlag:
        self.signal = 0
        try:
            self._old = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals belong to somebody else
            self._old = {}
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal and distributed.rank() == 0:
            os.write(2, STOPPING.encode())  # what is buffered may be half written just now
        self.signal = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Interrupted(Stopped):
    """Training was stopped by a signal, after a checkpoint if the step could be finished.

    Args:
        number: the signal.
        folder: where the checkpoints are; None: a dry run has none.
        is_written: whether there is one of the last step.
    """

    def __init__(self, number: int, folder: Path | None, is_written: bool = True) -> None:
        written = f"; checkpoint written to {folder}. Resume with --training.resume=auto."
        lost = f" in mid-step; --training.resume=auto goes on from the newest checkpoint in {folder}, if there is one."
        super().__init__("stopped by a signal" + (written if is_written else lost) * (folder is not None))
        self.exit_code = 128 + number
