"""Which rows are in which batch of an epoch, and which of them are this process's."""

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
        """Batches an epoch. With several processes the last one counts if each of them gets an image of it."""
        full, left = divmod(self.indices.size, self.batch_size * self.world_size)
        return full + (not self.drop_last and left > self.local_len(left) * (self.world_size - 1))

    def local_len(self, images: int) -> int:
        """How many of a global batch of `images` a process gets, the last one perhaps fewer: units are not divided."""
        return -(-images // (self.world_size * self.unit)) * self.unit

    def local_rows(self, order: np.ndarray, step: int) -> tuple[np.ndarray, int]:
        """See MultiCropLoader.local_rows."""
        size = self.batch_size * self.world_size
        batch = order[step * size : (step + 1) * size]
        length = self.local_len(batch.size)
        first = self.rank * length
        return batch[first : first + length], first
