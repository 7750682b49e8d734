"""What is said where there is no terminal for a progress bar, in the log of a batch system: a line an epoch."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta

LEAST_SECONDS = 10.0  # between two lines of epochs; only the first and the last one come sooner
MOST_SECONDS = 60.0  # an epoch that takes longer has lines in its midst


class LogLines:
    """Lines on stderr: the epoch, the mean loss since the line before, learning rate, images/s, the time that is left.

    Args:
        title: what begins a line.
        epoch_images: images of an epoch.
        epochs: epochs of the whole training; None: not known yet.
        done: images that are done at the start.
        in_epoch: those of them that are of the epoch in which it starts.

    Attributes:
        ends: time.perf_counter() at which training ends, where that is given; None: with its epochs.
    """

    ends: float | None = None

    def __init__(self, title: str, epoch_images: int, epochs: float | None, done: int, in_epoch: int = 0) -> None:
        self.title, self.epoch_images, self.epochs = title, epoch_images, epochs
        self._began = self._said = self._epoch_said = self._stepped = time.perf_counter()
        self._done = self._first = done
        self._since = done, self._began  # images and time from which the next line counts its speed
        self._in_epoch = in_epoch
        self._losses: list[float] = []
        self._lr = 0.0
        self._is_first = True
        # Of an epoch whose last loss is not here: what frames its line, with the speed up to its end, not to that loss.
        self._waiting: tuple[str, str, float] | None = None

    def step(self, images: int) -> None:
        """Count a batch of `images` images."""
        self._done += images
        self._in_epoch += images
        self._stepped = time.perf_counter()

    def log(self, epoch: int, loss: float, lr: float) -> None:
        """Take the loss of a step, which comes when the next one has been launched."""
        self._losses.append(loss)
        self._lr = lr
        if self._waiting is not None:
            self._say(*self._waiting)
        elif self._in_epoch < self.epoch_images and time.perf_counter() - self._said > MOST_SECONDS:
            self._say(self._place(epoch), "", self._speed())

    def end_epoch(self, epoch: int, last: bool, is_complete: bool, results: dict[str, float]) -> None:
        """Say a line on an epoch, if one is due.

        Args:
            epoch: number of the epoch.
            last: whether training ends here.
            is_complete: whether the loss of its last step is here; if not, the line waits for it.
            results: of an evaluation after it; {} without one.
        """
        if last or self._is_first or time.perf_counter() - self._epoch_said >= LEAST_SECONDS:
            top1 = f", top-1 {results['top1']:.2f} %" if "top1" in results else ""
            self._waiting = self._place(epoch), top1, self._speed()
            if is_complete:
                self._say(*self._waiting)
        self._in_epoch = 0

    def _place(self, epoch: int) -> str:
        """Which epoch it is, of how many, and how much of it is done unless all is."""
        of = f" of {math.ceil(self.epochs - 1e-9)}" if self.epochs is not None else ""
        part = self._in_epoch / self.epoch_images
        return f"epoch {epoch + 1}{of}" + (f" ({part:.0%})" if part < 1 else "")

    def _speed(self) -> float:
        """Images/s since this was asked the last time; an evaluation after the last step is no training."""
        (done, since), self._since = self._since, (self._done, time.perf_counter())
        return (self._done - done) / max(self._stepped - since, 1e-9)

    def _say(self, place: str, results: str, speed: float) -> None:
        now = time.perf_counter()
        losses = [loss for loss in self._losses if math.isfinite(loss)]
        loss = sum(losses) / len(losses) if losses else math.nan
        left = ""
        if self.ends is not None:
            left = f", {timedelta(seconds=round(max(0.0, self.ends - now)))} left"
        elif self.epochs is not None:
            share = (self.epochs * self.epoch_images - self._done) / max(1, self._done - self._first)
            left = f", {timedelta(seconds=round(max(0.0, share * (now - self._began))))} left"
        pace = f"{speed:,.{0 if speed >= 100 else 1}f} images/s"
        line = f"{self.title}: {place}, loss {loss:.4g}, lr {self._lr:.1e}, {pace}{left}{results}"
        sys.stdout.flush()  # what was said there comes before this
        print(line, file=sys.stderr, flush=True)
        self._said = now
        if self._waiting is not None:
            self._epoch_said, self._waiting, self._is_first = now, None, False
        self._losses = []
