"""Images per second and the time spent waiting for data, measured and shown, and what makes the loader faster."""

from __future__ import annotations

import time

import numpy as np
import torch
from tqdm import tqdm

from .. import limits
from ..beton.format import RAW
from ..loader import MultiCropLoader
from ..runtime import distributed
from .log_lines import LogLines

MIN_EPOCH_SECONDS = 10.0  # shorter epochs give no hints about waiting


class Throughput:
    """The progress bar, or lines in a log where there is none, and the throughput over the last second or so.

    Args:
        loader: the loader that training reads.
        images: images of the whole training.
        done: images that are done at the start.
        title: what the progress bar is called.

    Attributes:
        images_per_s: images a second, of all processes.
        data_wait: fraction of the time, 0 .. 1, that was spent waiting for the loader.
    """

    def __init__(self, loader: MultiCropLoader, images: int, done: int, title: str) -> None:
        self._loader, self._images = loader, 0
        self._since, self._waited = time.perf_counter(), loader.waited
        self._epoch, self._hinted = (self._since, self._waited), False
        self.images_per_s, self.data_wait = 0.0, 0.0
        self.bar = tqdm(
            total=images,
            initial=done,
            desc=title,
            unit="img",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=True if distributed.rank() else None,
        )
        self._lines: LogLines | None = None
        if self.bar.disable and distributed.rank() == 0:
            whole = min(len(loader) * loader.batch_size * loader.world_size, loader.indices.size)
            self._lines = LogLines(title, whole, self._epochs(images), done, done % loader.indices.size)

    def step(self, images: int) -> None:
        """Count a step of `images` images."""
        self._images += images
        elapsed = time.perf_counter() - self._since
        if elapsed >= 1.0 or self.images_per_s == 0:
            self.images_per_s = self._images / elapsed
            self.data_wait = min(1.0, (self._loader.waited - self._waited) / elapsed)
            self._images, self._since, self._waited = 0, time.perf_counter(), self._loader.waited
        self.bar.update(images)
        if self._lines is not None:
            self._lines.step(images)

    def metrics(self) -> dict[str, float]:
        """{"images_per_s", "data_wait"}, rounded for the log."""
        return {"images_per_s": round(self.images_per_s, 2), "data_wait": round(self.data_wait, 4)}

    def show(self, epoch: int, loss: float, lr: float, skipped: int) -> None:
        """Show the numbers of a step of `epoch`; `skipped`: how many steps were not finite so far."""
        waits = {"data wait": f"{self.data_wait:.0%}"}
        counted = {"nonfinite_steps": skipped} if skipped else {}
        self.bar.set_postfix({"loss": f"{loss:.3f}", "lr": f"{lr:.1e}", **counted, **waits}, refresh=False)
        if self._lines is not None:
            self._lines.log(epoch, loss, lr)

    def show_epoch(self, epoch: int, last: bool, is_complete: bool, results: dict[str, float]) -> None:
        """Say a line on an epoch where there is no bar, see LogLines.end_epoch."""
        if self._lines is not None:
            self._lines.end_epoch(epoch, last, is_complete, results)

    def end_epoch(self) -> None:
        """Print once what would make the loader faster, if an epoch waited for data more than 5 % of its time."""
        (since, waited), self._epoch = self._epoch, (time.perf_counter(), self._loader.waited)
        elapsed, waiting = self._epoch[0] - since, self._epoch[1] - waited
        if self._hinted or distributed.rank() or elapsed <= MIN_EPOCH_SECONDS or waiting <= 0.05 * elapsed:
            return
        self._hinted = True
        tqdm.write(f"{waiting / elapsed:.0%} of this epoch was spent waiting for data. {loader_hints(self._loader)}")

    def set_total(self, images: int | None, seconds: float) -> None:
        """Let training end at so many images (None: nobody knows yet), in so many seconds from now."""
        self.bar.total = images
        if self._lines is not None:
            self._lines.epochs = self._epochs(images)
            self._lines.ends = time.perf_counter() + seconds

    def _epochs(self, images: int | None) -> float | None:
        """How many epochs so many images are."""
        return None if images is None else images / self._loader.indices.size

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()


def loader_hints(loader: MultiCropLoader) -> str:
    """What makes this loader faster, as a sentence."""
    cores = limits.cores()
    hints = []
    if loader.num_workers * distributed.local_world() < cores:
        hints.append(f"give the loader more of the {cores} cores (--data.num_workers, now {loader.num_workers})")
    bilinear = all(view.interpolation == "bilinear" for view in loader.views)  # the GPU's crops are
    if torch.cuda.is_available() and bilinear and not hasattr(loader, "device"):
        hints.append("augment on the GPU (--data.augment_on=device)")
    if (loader.beton.mode != RAW).any() and not loader.cache.store.size:
        hints.append("store pixels instead of JPEGs (idmm-fast convert --mode raw)")
    longer = int(np.median(np.maximum(loader.beton.width, loader.beton.height)))
    largest = loader.largest
    if longer > 4 * largest:
        hints.append(
            f"store smaller images (idmm-fast convert --max-resolution {4 * largest}; now half of them have more than "
            f"{longer} pixels a side)"
        )
    return "To make it faster: " + "; or ".join(hints or ["use a machine with more cores for each GPU"]) + "."
