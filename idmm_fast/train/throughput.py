"""Images per second and waiting for data, measured while training, and what would make the loader faster."""

import time

import numpy as np
import torch
from tqdm import tqdm

from .. import limits
from ..beton.format import RAW
from ..runtime import distributed


class Throughput:
    """Images per second and the share of time spent waiting for data, over the last steps (one second at least)."""

    def __init__(self, loader, images_total, done, description):
        self._loader, self._images, self._since, self._waited = loader, 0, time.perf_counter(), loader.waited
        self._epoch, self._advised = (self._since, self._waited), False
        self.images_per_s, self.wait = 0.0, 0.0
        self.bar = tqdm(
            total=images_total,
            initial=done,
            desc=description,
            unit="img",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=True if distributed.rank() else None,
        )

    def step(self, images):
        self._images += images
        elapsed = time.perf_counter() - self._since
        if elapsed >= 1.0 or self.images_per_s == 0:
            self.images_per_s = self._images / elapsed
            self.wait = min(1.0, (self._loader.waited - self._waited) / elapsed)
            self._images, self._since, self._waited = 0, time.perf_counter(), self._loader.waited
        self.bar.update(images)

    def show(self, **values):
        self.bar.set_postfix({**values, "wait": f"{self.wait:.0%}"}, refresh=False)

    def end_epoch(self):
        """Say once, if an epoch waited for data more than a twentieth of its time, what to turn."""
        (since, waited), self._epoch = self._epoch, (time.perf_counter(), self._loader.waited)
        elapsed, waiting = self._epoch[0] - since, self._epoch[1] - waited
        if elapsed > PATIENCE and waiting > 0.05 * elapsed and not self._advised and distributed.rank() == 0:
            self._advised = True
            tqdm.write(
                f"{waiting / elapsed:.0%} of this epoch was spent waiting for data. {loader_hints(self._loader)}"
            )


PATIENCE = 10.0  # seconds an epoch takes at least to say something about waiting


def loader_hints(loader):
    """What makes this loader faster, as sentences."""
    cores = limits.cores()
    turns = []
    if loader.num_workers * distributed.local_world() < cores:
        turns.append(f"give the loader more of the {cores} cores (--data.num_workers, now {loader.num_workers})")
    if torch.cuda.is_available() and not hasattr(loader, "device"):
        turns.append("make the views on the GPU (--data.augment_on=device)")
    if (loader.beton.mode != RAW).any():
        turns.append("store pixels instead of JPEGs (write_datasets.py --mode raw)")
    longer, largest = (
        int(np.median(np.maximum(loader.beton.width, loader.beton.height))),
        max(view.size for view in loader.views),
    )
    if longer > 4 * largest:
        turns.append(
            f"store smaller images (write_datasets.py --max-resolution {4 * largest}; now half of them have more than {longer} pixels a side)"
        )
    return "To have it faster: " + "; or ".join(turns or ["use a machine with more cores for each GPU"]) + "."
