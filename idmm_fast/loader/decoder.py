"""The FFCV operation: a decoder that turns the rows of a batch into multi-crop groups, in parallel threads.

FFCV would compile an operation's function anew in every process (about 10 s) and run it on numba's threading layer, of
which two can't always live at once. The kernels are compiled once and cached, so the function itself stays plain
Python, hands slices of the batch to threads that run without the GIL, and checks what they return.
"""

import concurrent.futures.thread
import functools
import os
import queue
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..beton import Beton
from ..beton.format import JPG
from ..beton.jpeg import OK
from ..kernels.jit import is_cached
from .cache import ImageCache
from .crops import Augment, CutMixSpec, Group, Views, crop_table
from .cutmix import CutMix, sample_cutmix
from .failed import FailedImages, Found, as_loader_error
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
def announce_compilation() -> None:
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
        cutmix: how crops are mixed.
        found: the images that failed, added while the batch is made.
    """

    epoch: int
    step: int
    first: int
    buffer: np.ndarray
    cutmix: CutMixSpec
    found: Found = field(default_factory=dict)


class PendingBatch:
    """A batch whose slices run in the decoder's threads; `result` waits for them.

    Each thread takes the next slice until none is left. Then it begins the next batch, and waits for no slower one.

    Args:
        slices: [(first image, the one after the last), ...].
        render: called with a slice, writes its crops; in a thread.
        finish: called with the error of the first slice that failed, or None, gives the groups or raises.
    """

    def __init__(
        self,
        slices: Sequence[tuple[int, int]],
        render: Callable[[int, int], None],
        finish: Callable[[BaseException | None], list[Group]],
    ) -> None:
        self._slices, self._render, self._finish = deque(slices), render, finish
        self._errors: dict[int, BaseException] = {}
        self.futures: list[Future] = []  # what its threads do

    def submit(self, pool: ThreadPoolExecutor, threads: int) -> "PendingBatch":
        """Begin; returns this batch."""
        self.futures = [pool.submit(self._run) for _ in range(min(threads, len(self._slices)))]
        return self

    def _run(self) -> None:
        while True:
            # The program ends, and waits for this thread.
            if getattr(concurrent.futures.thread, "_shutdown", False) and self._slices:
                self._errors[-1] = RuntimeError("the batch was not made: the program ends")
                self.cancel()
            try:
                first, last = self._slices.popleft()
            except IndexError:
                return
            try:
                self._render(first, last)
            except BaseException as error:  # whatever it is, the consumer must hear of it
                self._errors[first] = error
                self.cancel()

    def cancel(self) -> None:
        """Begin no further slice."""
        self._slices.clear()

    def result(self) -> list[Group]:
        """The groups, once all slices are written.

        Raises:
            LoaderError: an image can't be decoded, see FailedImages, or a thread failed. Slices begin in their order,
                so the first image that fails is named, whatever the number of threads.
        """
        for future in self.futures:
            future.result()
        error = self._errors[min(self._errors)] if self._errors else None
        return self._finish(error)


class MultiCropDecoder(Operation):
    """Decodes each image once and writes all its crops, mixed by CutMix. Made by MultiCropLoader.

    In FFCV's graph its input is the rows of a batch and its memory a BatchPosition; its output is a PendingBatch.

    Args:
        beton: the images.
        views: {epoch: the multi-crop groups from it on}; epoch 0 is there, and all have as many crops.
        augment: which augmentations run.
        cutmix: how crops are mixed.
        seed: of everything random, 0..2**64 - 1.
        num_workers: threads.
        failed: what is done about images that can't be decoded.

    Attributes:
        cache: what is kept of decoded images.
        description: a few words for the first lines of a run; "" where there is nothing to say.
    """

    description = ""

    def __init__(
        self,
        beton: Beton,
        views: Mapping[int, Sequence[Views]],
        augment: Augment,
        cutmix: CutMixSpec,
        seed: int,
        num_workers: int,
        failed: FailedImages,
    ) -> None:
        super().__init__()
        self.beton, self.cutmix, self.failed = beton, cutmix, failed
        self.seed, self.num_workers = seed, num_workers
        self._groups = {epoch: (tuple(groups), crop_table(groups, augment)) for epoch, groups in views.items()}
        self.cache = ImageCache.none(len(beton))
        self._process: int | None = None

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        return replace(previous_state, jit_mode=False), None  # the loader passes the memory, see BatchPosition

    def generate_code(self) -> Callable:
        return lambda rows, position, metadata, storage: self.decode_batch(rows, position)

    def groups_at(self, epoch: int) -> tuple[tuple[Views, ...], np.ndarray]:
        """(the multi-crop groups of an epoch, CROP_SPEC (crops of an image,))."""
        return self._groups[max(first for first in self._groups if first <= epoch)]

    def buffer_size(self, batch_size: int) -> int:
        """Bytes that the images of one batch take, at most."""
        sizes = [sum(v.count * v.size * v.size * 3 for v in views) for views, _ in self._groups.values()]
        return max(sizes) * batch_size

    def sample_cutmix(
        self, epoch: int, step: int, batch: int, first: int = 0, cutmix: CutMixSpec | None = None
    ) -> list[CutMix]:
        """The mixing of each group of a batch of `batch` images; `first` and `cutmix` as in BatchPosition."""
        counter, cutmix = (np.uint64(self.seed), epoch, step), cutmix or self.cutmix
        views, _ = self.groups_at(epoch)
        return [sample_cutmix((*counter, g), batch, view, cutmix, first) for g, view in enumerate(views)]

    def sample_crops(self, epoch: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """What is sampled for every crop of `rows`: CROP_SAMPLE (crops, len(rows)). The pixels follow from it alone."""
        rows = np.asarray(rows, np.int64)
        _, specs = self.groups_at(epoch)
        result = np.zeros((specs.size, rows.size), CROP_SAMPLE)
        height, width = self.beton.height[rows], self.beton.width[rows]
        sample_crops(np.uint64(self.seed), epoch, rows, height, width, specs, result)
        return result

    def _start(self) -> None:
        if self._process == os.getpid():
            return
        height, width = int(self.beton.height.max()), int(self.beton.width.max())
        jpeg_pixels = int((self.beton.height * self.beton.width * (self.beton.mode == JPG)).max())
        specs = np.concatenate([specs for _, specs in self._groups.values()])
        announce_compilation()
        self._process = os.getpid()  # a forked child has none of its parent's threads and makes its own
        self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="idmm-loader")
        self._scratch: queue.SimpleQueue[Scratch] = queue.SimpleQueue()
        for _ in range(self.num_workers):
            self._scratch.put(Scratch(height, width, jpeg_pixels, specs))

    def decode_batch(self, rows: np.ndarray, position: BatchPosition) -> PendingBatch:
        """Begin a batch, over the position's buffer.

        Args:
            rows: int64 (B,), of the dataset.
            position: of the batch.
        """
        self._start()
        rows = rows.copy()  # the caller's may be a part of the whole order, and a row may be replaced
        return self._begin(rows, position, position.found, functools.partial(self._render, rows, position))

    def _begin(self, rows: np.ndarray, position: BatchPosition, found: Found, render: Callable) -> PendingBatch:
        """Begin a batch; render: called in threads with (a layout, see `_render`; the first image; the last + 1)."""
        mixes = self.sample_cutmix(position.epoch, position.step, len(rows), position.first, position.cutmix)
        views, specs = self.groups_at(position.epoch)
        sizes = [v.count * v.size * v.size * 3 * len(rows) for v in views]
        offsets = np.cumsum([0, *sizes[:-1]])
        boxes = np.concatenate([m.box for m in mixes])
        dest_rows = np.concatenate([np.argsort(m.partner) for m in mixes])

        def finish(error: BaseException | None) -> list[Group]:
            self.failed.count(found)
            if error is not None:
                raise as_loader_error(error)
            return [
                _group(view, mix, rows, position.buffer[offset : offset + size])
                for view, mix, offset, size in zip(views, mixes, offsets, sizes)
            ]

        return self._submit(len(rows), functools.partial(render, (specs, offsets, boxes, dest_rows)), finish)

    def _submit(self, images: int, render: Callable[[int, int], None], finish: Callable) -> PendingBatch:
        """Begin to render so many images, in slices."""
        return PendingBatch(_slices(images, self.num_workers), render, finish).submit(self._pool, self.num_workers)

    def _render(
        self, rows: np.ndarray, position: BatchPosition, layout: tuple[np.ndarray, ...], first: int, last: int
    ) -> None:
        """Write the crops of images first .. last - 1; in a thread. layout: specs to dest_rows, see `render_batch`."""
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
                    *self.cache.arrays,
                    np.uint64(self.seed),
                    position.epoch,
                    *layout,
                    position.buffer,
                    scratch.decoder.handle,
                    *scratch.arrays,
                )
                if code == OK:
                    return
                first = self.failed.handle(rows, place, code, position.found)
        finally:
            self._scratch.put(scratch)

    def abandon(self) -> None:
        """Tell the threads to end, and take no lock, as the pool's shutdown does: a finalizer may run in any thread."""
        if self._process == os.getpid():
            self._pool._shutdown = True
            self._pool._work_queue.put(None)  # type: ignore[arg-type]  # what shutdown puts there


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
