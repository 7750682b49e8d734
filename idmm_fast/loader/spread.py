"""Crops of an image spread over time: it is decoded once for several epochs, and each has its crops in another step.

A recipe of one crop an image and step learns more from a given number of crops than one of six, but pays one decoding
for each of them. Here an image's crops of K epochs are made at once, and kept until their step comes.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .crops import Augment, Group, crop_table
from .cutmix import mix_stored
from .decoder import BatchPosition, MultiCropDecoder, PendingBatch
from .order import Order, Place, SpreadOrder

# Batches of a block: fewer would bring an image back after so few steps, and always in the same company.
LEAST = 4


@dataclass
class _Block:
    """The crops of a block's images of this process, in the making.

    Attributes:
        rows: int64 (images,), batch after batch.
        position: of the crops in `position.buffer`; its epoch is the first of the round.
        specs: CROP_SPEC (crops of an image in all passes,).
        offsets: int64 (groups,), where a group begins in the buffer.
        done: bool (images,), which are made.
        ahead: so many, the first ones, are made or begun ahead.
        jobs: what makes them, with the images of each: (job, first, last + 1).
        readers: what reads the buffer.
    """

    rows: np.ndarray
    position: BatchPosition
    specs: np.ndarray
    offsets: np.ndarray
    done: np.ndarray
    ahead: int = 0
    jobs: list[tuple[PendingBatch, int, int]] = field(default_factory=list)
    readers: list[Future] = field(default_factory=list)


class SpreadDecoder(MultiCropDecoder):
    """Decodes each image once a round, and writes batches of its crops, mixed by CutMix.

    While a block is handed out, the next one is made: an equal part with each batch, so that all batches take equally
    long. The first block after a start is made with its batches: nobody waits for a whole block. The memory is that of
    two blocks, and is taken as they fill.

    Args:
        order: of the rows.
        epochs: see MultiCropLoader.
        *source: arguments of MultiCropDecoder.
    """

    def __init__(self, order: SpreadOrder, epochs: int | None, *source: Any) -> None:
        super().__init__(*source)
        self.order, self.epochs = order, epochs
        self._augment: Augment = source[2]
        images = max(order.lengths, default=0) * order.batch_size
        self._counts = np.array([view.count for view in self.groups_at(0)[0]])
        rows = order.passes * self._counts.sum() * images  # pages of zeros that are never written take no memory
        self._nowhere = np.zeros((rows, 4), np.int64), np.zeros(rows, np.int64)
        self._size = order.passes * self.buffer_size(images)
        self._blocks: dict[tuple[int, int], _Block] = {}  # the current one and the next
        self._current: tuple[int, int] | None = None
        self._pass: tuple[Any, np.ndarray] = None, np.empty(0, np.int64)  # the last one of `sample_pass`
        self._free: list[np.ndarray] = []  # memory of blocks
        blocks = len(order.lengths)
        if blocks:
            self.description = (
                f"images are decoded once in {order.passes} epochs, in {blocks} block{'s' * (blocks != 1)} of up to "
                f"{max(order.lengths)} batches (crops of up to {2 * self._size / 2**20:,.0f} MB in memory)"
            )
        else:
            self.description = "every epoch decodes all images: they are less than a batch, so nothing is spread"

    def _start(self) -> None:
        if self._process != os.getpid():
            self._blocks, self._free, self._current = {}, [], None  # those of another process are never finished here
        super()._start()

    def decode_batch(self, rows: np.ndarray, position: BatchPosition) -> PendingBatch:
        """Begin a batch; see MultiCropDecoder. Waits where images of it are not made yet."""
        place = self.order.place(position.epoch, position.step)
        if place is None:
            return super().decode_batch(rows, position)
        self._start()
        try:
            block = self._enter(place.number)
            batch, first = self.order.batch_size, self.order.rank * self.order.batch_size
            if (place.number, place.passed) != self._pass[0]:
                self._pass = (place.number, place.passed), self.order.sample_pass(place)
            images = self._pass[1][place.index, first : first + batch] * batch + np.arange(batch)
            missing = images[~block.done[images]]
            if missing.size:
                self._submit(missing.size, functools.partial(self._make, block, missing), _finish).result()
                block.done[missing] = True
            else:
                self._make_ahead(place)
        except BaseException:
            self._blocks, self._free, self._current = {}, [], None  # what failed is tried again
            raise
        found = {row: block.position.found[row] for row in rows.tolist() if row in block.position.found}
        pending = self._begin(
            block.rows[images], position, found, self._hand_out(block, images, place.passed, position)
        )
        block.readers = [future for future in block.readers if not future.done()] + pending.futures
        return pending

    def _enter(self, number: tuple[int, int]) -> _Block:
        """The block of that number, as far as it was made ahead. The memory of the one before is free then."""
        if number != self._current:
            for other in [other for other in self._blocks if other != number]:
                block = self._blocks.pop(other)
                wait([*block.readers, *(future for job, _, _ in block.jobs for future in job.futures)])
                self._free.append(block.position.buffer)
            self._current = number
        block = self._blocks.get(number) or self._new(number)
        for job, first, last in block.jobs:
            job.result()
            block.done[first:last] = True
        block.jobs.clear()
        return block

    def _new(self, number: tuple[int, int]) -> _Block:
        """A block of which nothing is made."""
        order, first = self.order, self.order.rank * self.order.batch_size
        rows = order.sample_round(number[0])[number[1]][:, first : first + order.batch_size].flatten()
        buffer = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        position = BatchPosition(number[0] * order.passes, 0, 0, buffer, self.cutmix)
        views, _ = self.groups_at(position.epoch)
        sizes = [order.passes * view.count * view.size * view.size * 3 * rows.size for view in views]
        layout = crop_table(views, self._augment, order.passes), np.cumsum([0, *sizes[:-1]])
        self._blocks[number] = block = _Block(rows, position, *layout, np.zeros(rows.size, bool))
        return block

    def _make_ahead(self, place: Place) -> None:
        """Begin to make a part of the block that follows, so that it is whole when this one is handed out."""
        number, block = place.number
        after = (number, block + 1) if block + 1 < len(self.order.lengths) else (number + 1, 0)
        first_batch = self.order.passes * sum(self.order.lengths[: after[1]])
        begins = after[0] * self.order.passes + first_batch // sum(self.order.lengths)
        if self.epochs is not None and begins >= self.epochs:
            return
        follows = self._blocks.get(after) or self._new(after)
        batches = place.length * (self.order.passes - place.passed) - place.index
        first, images = follows.ahead, -(-(follows.rows.size - follows.ahead) // batches)
        if images:
            make = functools.partial(self._make, follows, np.arange(first, first + images))
            follows.ahead += images
            follows.jobs.append((self._submit(images, make, _finish), first, follows.ahead))

    def _make(self, block: _Block, images: np.ndarray, first: int, last: int) -> None:
        """Make all crops of images[first:last], which are places in the block; in a thread."""
        layout, mine = (block.specs, block.offsets, *self._nowhere), images[first:last]
        for run in np.split(mine, np.flatnonzero(np.diff(mine) != 1) + 1):  # neighbours in one call
            self._render(block.rows, block.position, layout, int(run[0]), int(run[-1]) + 1)

    def _hand_out(
        self, block: _Block, images: np.ndarray, passed: int, position: BatchPosition
    ) -> Callable[[tuple[np.ndarray, ...], int, int], None]:
        """What writes the images first .. last - 1 of a batch; in a thread."""

        def render(layout: tuple[np.ndarray, ...], first: int, last: int) -> None:
            kept = images, passed, block.position.buffer, block.offsets, block.rows.size, self._counts
            mix_stored(first, last, *kept, *layout, position.buffer)

        return render


def _finish(error: BaseException | None) -> list[Group]:
    if error is not None:
        raise error
    return []


def make_decoder(
    order: Order, passes: int, memory_mb: int, epochs: int | None, source: tuple[Any, ...]
) -> tuple[Order, MultiCropDecoder]:
    """The order of the rows and the decoder of a loader.

    Args:
        order: without spread.
        passes: epochs for which an image is decoded once, at least 1.
        memory_mb: the most that crops of later epochs take, in MB, of all processes together.
        epochs: see MultiCropLoader.
        source: arguments of MultiCropDecoder.

    Raises:
        ValueError: the memory is too small, or images are to be skipped.
    """
    decoder = MultiCropDecoder(*source)
    if passes < 1:
        raise ValueError(f"spread is at least 1 (1: every epoch decodes each image), not {passes}")
    if passes == 1:
        return order, decoder
    if decoder.failed.on_error == "skip":
        raise ValueError("on_error='skip' does not go with spread; use 'raise' or 'replace'")
    batch = 2 * passes * decoder.buffer_size(order.batch_size * order.world_size)  # of this block and the next
    longest, whole = (memory_mb << 20) // batch, order.indices.size // (order.batch_size * order.world_size)
    # The shortest block is of whole // blocks batches.
    lengths = range(max(1, longest), whole + 1)
    enough = next((n for n in lengths if whole // -(-whole // n) >= min(LEAST, whole)), longest)
    if longest < enough:
        raise ValueError(
            f"spread_mb={memory_mb} holds the crops of {longest} batches for {passes} epochs, and {enough} are needed: "
            f"{-(-enough * batch >> 20)} MB; or lower spread"
        )
    spread = SpreadOrder(**{f.name: getattr(order, f.name) for f in fields(order)}, passes=passes, longest=longest or 1)
    return spread, SpreadDecoder(spread, epochs, *source)
