"""Ctrl-C and SIGTERM: training stops between two steps, after a checkpoint."""

import signal


class SignalFlag:
    """Turns Ctrl-C and SIGTERM into a flag that the loop looks at between two steps; a second Ctrl-C stops at once."""

    def __enter__(self):
        self.signal = 0
        try:
            self._old = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            self._old = {}
        return self

    def _set(self, number, frame):
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *exc):
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint."""

    def __init__(self, number, folder):
        super().__init__(f"stopped at your wish; checkpoint written to {folder}. Go on with --training.resume=auto.")
        self.exit_code = 128 + number
