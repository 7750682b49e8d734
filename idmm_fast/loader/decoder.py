"""The FFCV operation: a decoder that turns the rows of a batch into multi-crop groups, in parallel threads.

FFCV would compile an operation's function anew in every process (about 10 s) and run it on numba's threading layer, of
which two can't always live at once. The kernels are compiled once and cached, so the function itself stays plain
Python, hands slices of the batch to threads that run without the GIL, and checks what they return.
"""

import functools
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..beton import Beton
from ..beton.format import JPG
from ..beton.jpeg import MESSAGES, OK
from ..errors import LoaderError
from ..kernels.jit import is_cached
from .crops import Augment, CutMixSpec, Group, Views, crop_table
from .cutmix import CutMix, sample_cutmix
from .ffcv_compat import Operation
from .render import Scratch, render_batch
from .sampling import CROP_SAMPLE, sample_crops


def _slices(batch: int, workers: int) -> list[tuple[int, int]]:
    """A batch in slices for the threads: large ones first, single images last, so that all threads end together."""
    edges = [0]
    while edges[-1] < batch:
        edges.append(edges[-1] + max(1, (batch - edges[-1]) // (2 * workers)))
    return list(zip(edges[:-1], edges[1:]))


@functools.cache
def _announce_compilation() -> None:
    if not is_cached(render_batch):
        print(
            "compiling the loader's kernels; this is done once on a machine and takes about half a minute",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class BatchPosition:
    """Which batch is made, and where: its content depends on this, its rows and the seed alone.

    Attributes:
        epoch: 0, 1, ...
        step: number of the batch in the epoch.
        first: place of the first image in the global batch.
        buffer: uint8, where the images are written.
    """

    epoch: int
    step: int
    first: int
    buffer: np.ndarray


class FailedImages:
    """What is done about images that can't be decoded.

    Args:
        path: the beton, for messages.
        rows: those that the loader reads; a replacement is one of them.
        on_error: "raise"; "replace" an image by the next row's; "skip" it.

    Attributes:
        replaced: {row: (the row that replaces it, why)}.
        skipped: {row: why}.
    """

    def __init__(self, path: Path, rows: np.ndarray, on_error: str) -> None:
        self.on_error = on_error
        self.replaced: dict[int, tuple[int, str]] = {}
        self.skipped: dict[int, str] = {}
        self._path, self._rows, self._lock = path, np.sort(rows), threading.Lock()
        self._distinct = 1 + np.count_nonzero(np.diff(self._rows))  # one may come twice

    def handle(self, rows: np.ndarray, place: int, code: int) -> int:
        """Change a batch where an image failed.

        Args:
            rows: int64 (B,), of the batch; the failed one becomes its replacement, or -1 if it is skipped.
            place: of the failed image in the batch.
            code: of beton.jpeg, why it failed.

        Returns:
            The place at which to continue.

        Raises:
            LoaderError: with on_error="raise", or when no row can be decoded.
        """
        row = int(rows[place])
        reason = f"row {row} of {self._path} can't be decoded: {MESSAGES[code]}"
        if self.on_error == "raise":
            raise LoaderError(
                f"{reason}. Convert the dataset again with write_datasets.py, or use on_error='replace', "
                f"in evaluation 'skip'."
            )
        if self.on_error == "skip":
            rows[place] = -1
            if self._is_new(self.skipped, row, MESSAGES[code]):
                warnings.warn(f"{reason}; it is left out ({len(self.skipped)} skipped so far)", stacklevel=2)
            return place + 1
        rows[place] = other = int(self._rows[np.searchsorted(self._rows, row, side="right") % self._rows.size])
        if self._is_new(self.replaced, row, (other, MESSAGES[code])):
            warnings.warn(f"{reason}; row {other} replaces it ({len(self.replaced)} replaced so far)", stacklevel=2)
        if len(self.replaced) == self._distinct:
            raise LoaderError(
                f"no row of {self._path} can be decoded; convert the dataset again with write_datasets.py"
            )
        return place

    def _is_new(self, seen: dict, row: int, entry: Any) -> bool:
        """Whether `row` was not in `seen`, where it is now; true for one thread only."""
        with self._lock:
            return row not in seen and not seen.update({row: entry})


class MultiCropDecoder(Operation):
    """Decodes each image once and writes all its crops, mixed by CutMix. Made by MultiCropLoader.

    In FFCV's graph its input is the rows of a batch and its memory a BatchPosition; its output is a list of Group.

    Args:
        beton: the images.
        views: the multi-crop groups.
        augment: which augmentations run.
        cutmix: how crops are mixed.
        seed: of everything random, 0..2**64 - 1.
        num_workers: threads.
        failed: what is done about images that can't be decoded.

    Attributes:
        specs: CROP_SPEC (crops of an image,).
    """

    def __init__(
        self,
        beton: Beton,
        views: Sequence[Views],
        augment: Augment,
        cutmix: CutMixSpec,
        seed: int,
        num_workers: int,
        failed: FailedImages,
    ) -> None:
        super().__init__()
        self.beton, self.views, self.cutmix, self.failed = beton, views, cutmix, failed
        self.seed, self.num_workers = seed, num_workers
        self.specs = crop_table(views, augment)
        self._process: int | None = None

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        return replace(previous_state, jit_mode=False), None  # the loader passes the memory, see BatchPosition

    def generate_code(self) -> Callable:
        def decode(rows: np.ndarray, position: BatchPosition, metadata: Any, storage: Any) -> list[Group]:
            return self.decode_batch(rows, position)

        return decode

    def buffer_size(self, batch_size: int) -> int:
        """Bytes that the images of one batch take."""
        return sum(v.count * v.size * v.size * 3 for v in self.views) * batch_size

    def sample_cutmix(self, epoch: int, step: int, batch: int, first: int = 0) -> list[CutMix]:
        """The mixing of each group of a batch of `batch` images; `first` as in BatchPosition."""
        seed = np.uint64(self.seed)
        return [
            sample_cutmix((seed, epoch, step, g), batch, view, self.cutmix, first) for g, view in enumerate(self.views)
        ]

    def sample_crops(self, epoch: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """What is sampled for every crop of `rows`: CROP_SAMPLE (crops, len(rows)). The pixels follow from it alone."""
        rows = np.asarray(rows, np.int64)
        result = np.zeros((self.specs.size, rows.size), CROP_SAMPLE)
        sample_crops(
            np.uint64(self.seed), epoch, rows, self.beton.height[rows], self.beton.width[rows], self.specs, result
        )
        return result

    def _start(self) -> None:
        if self._process == os.getpid():
            return
        height, width = int(self.beton.height.max()), int(self.beton.width.max())
        decode = bool((self.beton.mode == JPG).any())
        _announce_compilation()
        self._process = os.getpid()  # a forked child has none of its parent's threads and makes its own
        self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="idmm-loader")
        self._scratch: queue.SimpleQueue[Scratch] = queue.SimpleQueue()
        for _ in range(self.num_workers):
            self._scratch.put(Scratch(height, width, self.specs, decode))

    def decode_batch(self, rows: np.ndarray, position: BatchPosition) -> list[Group]:
        """The groups of a batch, over the position's buffer.

        Args:
            rows: int64 (B,), of the dataset.
            position: of the batch.

        Raises:
            LoaderError: an image can't be decoded, see FailedImages.
        """
        self._start()
        rows = rows.copy()  # the caller's may be a part of the whole order, and a row may be replaced
        mixes = self.sample_cutmix(position.epoch, position.step, len(rows), position.first)
        sizes = np.array([v.count * v.size * v.size * 3 * len(rows) for v in self.views])
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        boxes = np.concatenate([m.box for m in mixes])
        dest_rows = np.concatenate([np.argsort(m.partner) for m in mixes])
        work = functools.partial(self._render, rows, position, (offsets, boxes, dest_rows))
        futures = [self._pool.submit(work, first, last) for first, last in _slices(len(rows), self.num_workers)]
        wait(futures)  # all of them: no thread may still write when this returns
        for future in futures:
            future.result()
        return [
            _group(view, mix, rows, position.buffer[offset : offset + size])
            for view, mix, offset, size in zip(self.views, mixes, offsets, sizes)
        ]

    def _render(
        self, rows: np.ndarray, position: BatchPosition, layout: tuple[np.ndarray, ...], first: int, last: int
    ) -> None:
        """Write the crops of the images first .. last - 1 of the batch; in a thread. layout: see `render_batch`."""
        b, scratch = self.beton, self._scratch.get()
        try:
            while first < last:
                place, code = render_batch(
                    first,
                    last,
                    rows,
                    b.bytes,
                    b.mode,
                    b.height,
                    b.width,
                    b.ptr,
                    b.length,
                    b.sums,
                    np.uint64(self.seed),
                    position.epoch,
                    self.specs,
                    *layout,
                    position.buffer,
                    scratch.decoder.handle,
                    *scratch.arrays,
                )
                if code == OK:
                    return
                first = self.failed.handle(rows, place, code)
        finally:
            self._scratch.put(scratch)

    def close(self) -> None:
        """End the threads and free their scratch."""
        if self._process == os.getpid():
            self._pool.shutdown(wait=not sys.is_finalizing())
        self._process = None


def _group(view: Views, mix: CutMix, rows: np.ndarray, buffer: np.ndarray) -> Group:
    """A group over `buffer`, without the images that are skipped (their row is -1)."""
    batch = len(rows)
    pixels = torch.from_numpy(buffer).view(view.count * batch, view.size, view.size, 3)
    idx = np.tile(rows, view.count)
    idx_a, idx_b = torch.from_numpy(idx), torch.from_numpy(idx[mix.partner])
    lam = torch.from_numpy(mix.lam.astype(np.float32))
    if (rows < 0).any():  # one crop an image, and not mixed: what is skipped is a row of the group
        left = torch.from_numpy(np.flatnonzero(rows >= 0))
        pixels, idx_a, idx_b, lam = (t[left] for t in (pixels, idx_a, idx_b, lam))
    return Group(pixels.permute(0, 3, 1, 2), idx_a, idx_b, lam)
