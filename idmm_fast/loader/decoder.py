"""The FFCV operation: a decoder that turns the rows of a batch into groups of views, in parallel threads.

FFCV would compile an operation's function anew in every process (about 10 s) and run it on numba's threading layer, of
which two can't always live at once. The kernels below are compiled once and cached, so the function itself stays plain
Python, hands slices of the batch to threads that run without the GIL, and looks at what they return.
"""

import functools
import os
import queue
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..beton.jpeg import MESSAGES, OK
from ..errors import LoaderError
from ..kernels.jit import is_cached
from .cutmix import sample_cutmix
from .ffcv_compat import Operation
from .render import Scratch, render_batch
from .sampling import CROP_SPEC, DRAW, sample_crops


def _edges(batch, workers):
    """Where a batch is cut into slices for the threads: large ones first, single images last, so that all threads end together."""
    edges = [0]
    while edges[-1] < batch:
        edges.append(edges[-1] + max(1, (batch - edges[-1]) // (2 * workers)))
    return edges


@functools.cache
def _announce_compilation():
    if not is_cached(render_batch):
        print(
            "compiling the loader's kernels; this is done once on a machine and takes about half a minute",
            file=sys.stderr,
        )


def row_numbers(rows, beton):
    """Which rows of `beton` are meant: int64 (n,), as they are given, in their order and as often; all for None, those that hold for a mask, bool
    (len(beton),). Raises ValueError."""
    count = len(beton)
    if rows is None:
        return np.arange(count)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (count,):
            raise ValueError(
                f"rows, as a mask, needs an entry for each of the {count} rows of {beton.path}, not shape {rows.shape}"
            )
        rows = np.flatnonzero(rows)
    if rows.size == 0:
        raise ValueError(f"rows names none of the {count} rows of {beton.path}")
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"rows holds numbers of rows, integers of shape (n,), or is a mask of bool of shape ({count},), not {rows.dtype} of shape {rows.shape}"
        )
    if rows.min() < 0 or rows.max() >= count:
        raise ValueError(
            f"rows must be within 0..{count - 1}, the rows of {beton.path}, and holds {rows.min()}..{rows.max()}"
        )
    return rows.astype(np.int64)


@dataclass(frozen=True)
class Views:
    """A group of views of every image: `count` random crops of `size` x `size` pixels.

    scale: range of the crop's share of the image's area; ratio: of its width over its height (torchvision's
    RandomResizedCrop). interpolation: "bilinear" or "bicubic", both antialiased as in PIL. resize: if not 0, no random
    crop but the evaluation view: the shorter side becomes `resize` pixels, then the centre is cut out.
    """

    count: int
    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    resize: int = 0

    def __post_init__(self):
        if self.count < 1 or self.size < 8:
            raise ValueError(
                f"Views needs a count of at least 1 and a size of at least 8, not {self.count} and {self.size}"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"Views.scale is a range of shares of the image within 0..1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"Views.ratio is a range of width over height, not {self.ratio}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"Views.interpolation is 'bilinear' or 'bicubic', not '{self.interpolation}'")
        if self.resize and self.resize < self.size:
            raise ValueError(f"Views.resize {self.resize} is smaller than the size {self.size} that is cut out of it")


@dataclass(frozen=True)
class Group:
    """One group of views of a batch of B images; rows are crop-major: view 0 of all images, then view 1, ...

    images: uint8 (count * B, 3, H, W), channels-last in memory. idx_a, idx_b: int64 (count * B,), dataset rows: whose
    pixels lie outside and inside the CutMix box. lam: float32 (count * B,), share of idx_a's pixels.
    """

    images: torch.Tensor
    idx_a: torch.Tensor
    idx_b: torch.Tensor
    lam: torch.Tensor


@dataclass(frozen=True)
class BatchPosition:
    """Which batch is to be made, and where: the draws depend on this and the seed alone."""

    epoch: int
    step: int
    first: int  # place of the first image in the global batch
    buffer: np.ndarray


def crop_table(views, augment):
    """One VIEW record a view, in the order of the groups."""
    table = np.zeros(sum(v.count for v in views), CROP_SPEC)
    record = iter(table)
    for group, spec in enumerate(views):
        for place in range(spec.count):
            r = next(record)
            r["group"], r["place"], r["size"], r["resize"] = group, place, spec.size, spec.resize
            r["bicubic"] = spec.interpolation == "bicubic"
            r["scale"], r["ratio"], r["sigma"] = spec.scale, spec.ratio, augment.blur_sigma
            for name in (
                "flip_prob",
                "jitter_prob",
                "brightness",
                "contrast",
                "saturation",
                "hue",
                "grayscale_prob",
                "blur_prob",
                "randaugment",
            ):
                r[name] = getattr(augment, name)
    return table


@dataclass(frozen=True)
class CutMixSpec:
    """How views are mixed: `alpha` of the Beta distribution of the share (0: not at all), `chunk` images that mix among
    themselves (0: the whole batch), a box for each row or one for all (`per_row`). See cutmix.draw_cutmix."""

    alpha: float = 0.5
    chunk: int = 0
    per_row: bool = False

    def __post_init__(self):
        if self.alpha < 0:
            raise ValueError(f"cutmix_alpha is at least 0 (0: no CutMix), not {self.alpha}")
        if self.chunk < 0:
            raise ValueError(f"cutmix_chunk is at least 0 (0: the whole batch), not {self.chunk}")


class MultiCropDecoder(Operation):
    """Decodes each image once and writes all its views, mixed by CutMix. Made by MultiCropLoader.

    In FFCV's graph its input is the rows of a batch and its memory a Position; its output is a list of Group.
    The images that could not be decoded are in `replaced`, {row: (what stood in, why)}, or `skipped`, {row: why}.
    """

    def __init__(self, beton, views, augment, mixing, seed, num_workers, on_error, rows):
        super().__init__()
        self.beton, self.views, self.mixing, self.seed = beton, views, mixing, seed
        self.num_workers, self.on_error, self.rows, self.replaced = num_workers, on_error, np.sort(rows), {}
        self.skipped, self._lock = {}, threading.Lock()
        self.table = crop_table(views, augment)
        self._process = None

    def declare_state_and_memory(self, previous_state):
        return replace(previous_state, jit_mode=False), None  # the loader passes the memory, see Position

    def generate_code(self):
        def decode(rows, position, metadata, storage):
            return self.make(rows, position)

        return decode

    def buffer_size(self, batch_size):
        """Bytes that the images of one batch take."""
        return sum(v.count * v.size * v.size * 3 for v in self.views) * batch_size

    def cutmix(self, epoch, step, batch, first=0):
        """The draw of every group for a batch of `batch` images, the first of which is number `first` of the global batch: list of CutMix."""
        m = self.mixing
        return [
            sample_cutmix(
                np.uint64(self.seed),
                epoch,
                step,
                g,
                batch,
                v.count,
                v.size,
                m.alpha,
                chunk=m.chunk,
                first=first,
                per_row=m.per_row,
            )
            for g, v in enumerate(self.views)
        ]

    def draws(self, epoch, rows):
        """What is drawn for every view of `rows`: DRAW records (views, len(rows)). The pixels follow from it alone."""
        rows = np.asarray(rows, np.int64)
        result = np.zeros((self.table.size, rows.size), DRAW)
        sample_crops(
            np.uint64(self.seed), epoch, rows, self.beton.height[rows], self.beton.width[rows], self.table, result
        )
        return result

    def _start(self):
        if self._process == os.getpid():
            return
        height, width = int(self.beton.height.max()), int(self.beton.width.max())
        decode = bool((self.beton.mode == 0).any())
        _announce_compilation()
        self._process = os.getpid()  # a forked child has none of its parent's threads and makes its own
        self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="idmm-loader")
        self._scratch = queue.SimpleQueue()
        for _ in range(self.num_workers):
            self._scratch.put(Scratch(height, width, self.table, decode))

    def make(self, rows, position):
        """The groups of the batch `rows` (int64 (B,)) at `position`: list of Group over its buffer. Raises LoaderError."""
        self._start()
        batch = len(rows)
        rows = rows.copy()  # the caller's may be a part of the whole order, and a row may be replaced
        mixes = self.cutmix(position.epoch, position.step, batch, position.first)
        sizes = np.array([v.count * v.size * v.size * 3 * batch for v in self.views])
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        boxes = np.concatenate([m.box for m in mixes])
        takers = np.concatenate([np.argsort(m.partner) for m in mixes])
        b = self.beton

        def work(first, last):
            scratch = self._scratch.get()
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
                        self.table,
                        offsets,
                        boxes,
                        takers,
                        position.buffer,
                        scratch.decoder.handle,
                        *scratch.arrays,
                    )
                    if code == OK:
                        return
                    first = self._mend(rows, place, code)
            finally:
                self._scratch.put(scratch)

        edges = _edges(batch, self.num_workers)
        futures = [self._pool.submit(work, first, last) for first, last in zip(edges[:-1], edges[1:])]
        wait(futures)  # all of them: no thread may still write when this returns
        for future in futures:
            future.result()
        left = torch.from_numpy(np.flatnonzero(rows >= 0))
        groups = []
        for view, mix, offset, size in zip(self.views, mixes, offsets, sizes):
            pixels = torch.from_numpy(position.buffer[offset : offset + size]).view(
                view.count * batch, view.size, view.size, 3
            )
            idx = np.tile(rows, view.count)
            targets = idx, idx[mix.partner], mix.lam.astype(np.float32)
            idx_a, idx_b, lam = (torch.from_numpy(t) for t in targets)
            if left.numel() < batch:  # one view an image, and not mixed: what is skipped is a row of the group
                pixels, idx_a, idx_b, lam = (t[left] for t in (pixels, idx_a, idx_b, lam))
            groups.append(Group(pixels.permute(0, 3, 1, 2), idx_a, idx_b, lam))
        return groups

    def _mend(self, rows, place, code):
        """What to do about the row at `place` of the batch, which can't be decoded: raise, put the next of the loader's rows there, or -1 to skip it.
        Returns the place to go on with."""
        row, b = int(rows[place]), self.beton
        reason = f"row {row} of {b.path} can't be decoded: {MESSAGES[code]}"
        if self.on_error == "raise":
            raise LoaderError(
                f"{reason}. Convert the dataset again with write_datasets.py, or use on_error='replace', in evaluation 'skip'."
            )
        if self.on_error == "skip":
            rows[place] = -1
            if self._first(self.skipped, row, MESSAGES[code]):
                warnings.warn(f"{reason}; it is left out ({len(self.skipped)} skipped so far)", stacklevel=2)
            return place + 1
        rows[place] = other = int(self.rows[np.searchsorted(self.rows, row, side="right") % self.rows.size])
        if self._first(self.replaced, row, (other, MESSAGES[code])):
            warnings.warn(
                f"{reason}; row {other} stands in for it ({len(self.replaced)} replaced so far)", stacklevel=2
            )
        if len(self.replaced) == 1 + np.count_nonzero(np.diff(self.rows)):  # all of them; one may come twice
            raise LoaderError(f"no row of {b.path} can be decoded; convert the dataset again with write_datasets.py")
        return place

    def _first(self, seen, row, entry):
        """Whether `row` was not in the dict `seen`, where it is now; said to one thread only."""
        with self._lock:
            return row not in seen and not seen.update({row: entry})

    def close(self):
        """End the threads and free their scratch."""
        if self._process == os.getpid():
            self._pool.shutdown(wait=not sys.is_finalizing())
        self._process = None
