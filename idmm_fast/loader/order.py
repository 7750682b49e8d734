"""Which rows are in which batch of an epoch, and which of them are this process's."""

import functools
from dataclasses import dataclass

import numpy as np

from ..kernels.philox import ORDER_STREAM, permutation
from .ffcv_compat import TraversalOrder


@dataclass(frozen=True)
class Order(TraversalOrder):
    """The order of the rows, and its division into batches and processes.

    Attributes:
        indices: int64 (n,), rows of the dataset.
        seed: of the order, 0..2**64 - 1.
        shuffle: a new order each epoch, else that of `indices`.
        drop_last: leave out the last partial batch.
        batch_size: images of a batch of one process.
        rank: of this process.
        world_size: number of processes.
        unit: so many neighbouring images stay in one process.
    """

    indices: np.ndarray
    seed: int
    shuffle: bool
    drop_last: bool
    batch_size: int
    rank: int
    world_size: int
    unit: int

    def sample_order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, int64 (n,)."""
        if not self.shuffle:
            return self.indices
        return self.indices[permutation(np.uint64(self.seed), 0, epoch, ORDER_STREAM, self.indices.size)]

    def __len__(self) -> int:
        """Batches an epoch. The last one counts if each process gets a unit of it."""
        full, left = divmod(self.indices.size, self.batch_size * self.world_size)
        return full + (not self.drop_last and -(-left // self.unit) >= self.world_size)

    def local_part(self, images: int) -> tuple[int, int]:
        """This process's part of a global batch of `images`, which divides its units as evenly as it can.

        Returns:
            (place of the first image, that after the last).
        """
        units = -(-images // self.unit)
        first, last = (rank * units // self.world_size * self.unit for rank in (self.rank, self.rank + 1))
        return first, min(last, images)

    def local_rows(self, order: np.ndarray, step: int) -> tuple[np.ndarray, int]:
        """See MultiCropLoader.local_rows."""
        size = self.batch_size * self.world_size
        batch = order[step * size : (step + 1) * size]
        first, last = self.local_part(batch.size)
        return batch[first:last], first


@dataclass(frozen=True)
class Place:
    """Where a whole batch is in its round.

    Attributes:
        number: of the round and of the block in it.
        length: batches of the block.
        passed: passes over the block before this one.
        index: of the batch in its pass.
    """

    number: tuple[int, int]
    length: int
    passed: int
    index: int


@dataclass(frozen=True)
class SpreadOrder(Order):
    """The order of the rows where an image is decoded once for `passes` epochs, which are a round.

    A round divides the rows at random into blocks of batches and goes through each block `passes` times before it
    begins the next one. Pass p has the crops that a loader without spread makes of the image in the p-th epoch of the
    round. Each pass permutes a block anew, but an image keeps its place in the batch: so a process needs its own images
    alone, however many processes there are. An epoch is as many batches as without spread. It is one pass over the rows
    where all are in one block, and else a part of the round: every row comes once in `passes` epochs on average. What
    is left over when a round is divided into whole batches is decoded in every epoch, as the last batch.

    Attributes:
        passes: over a block, above 1.
        longest: batches of a block, at most.
    """

    passes: int
    longest: int

    @functools.cached_property
    def lengths(self) -> list[int]:
        """The batches of each block of a round."""
        whole = self.indices.size // (self.batch_size * self.world_size)
        blocks = -(-whole // self.longest)
        return [len(part) for part in np.array_split(np.arange(whole), blocks)] if blocks else []

    def place(self, epoch: int, step: int) -> Place | None:
        """Where a batch is; None: it is what is left over."""
        whole = sum(self.lengths)
        if step >= whole:
            return None
        at = epoch % self.passes * whole + step
        block = 0
        while at >= self.lengths[block] * self.passes:
            at -= self.lengths[block] * self.passes
            block += 1
        return Place((epoch // self.passes, block), self.lengths[block], *divmod(at, self.lengths[block]))

    def sample_round(self, number: int) -> list[np.ndarray]:
        """The rows of each block of a round, int64 (batches, global batch), and int64 (n,), those left over."""
        rows, size = self.indices, self.batch_size * self.world_size
        if self.shuffle:
            stream = ORDER_STREAM + 1
            rows = rows[permutation(np.uint64(self.seed), 0, number * self.passes, stream, rows.size)]
        edges = np.cumsum([length * size for length in self.lengths])
        *blocks, left = np.split(rows, edges)
        return [block.reshape(-1, size) for block in blocks] + [left]

    def sample_pass(self, place: Place) -> np.ndarray:
        """Which batch of the block each image is from: int64 (batches, global batch), for the batches of a pass."""
        shape = place.length, self.batch_size * self.world_size
        if not self.shuffle:
            return np.repeat(np.arange(shape[0])[:, None], shape[1], axis=1)
        (number, block), seed = place.number, np.uint64(self.seed)
        epoch = number * self.passes + place.passed
        return permutation(seed, block, epoch, ORDER_STREAM, shape[0] * shape[1]).reshape(shape).argsort(axis=0)

    def sample_order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, int64 (n,)."""
        *blocks, left = self.sample_round(epoch // self.passes)
        parts, step, whole = [], 0, sum(self.lengths)
        while step < whole:
            place = self.place(epoch, step)
            assert place is not None
            rows = np.take_along_axis(blocks[place.number[1]], self.sample_pass(place), axis=0)
            parts.append(rows[place.index : place.index + whole - step])
            step += len(parts[-1])
        return np.concatenate([*(part.reshape(-1) for part in parts), left])
