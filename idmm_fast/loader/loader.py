"""MultiCropLoader: FFCV's Loader with the multi-crop and CutMix decoder inside."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import limits
from ..beton import open_beton
from ..beton.read import row_numbers
from .cache import ImageCache
from .crops import IDMM_VIEWS, Augment, CutMixSpec, Views
from .failed import FailedImages
from .ffcv_compat import Compiler, Graph, Loader, PipelineSpec, RGBImageField
from .order import Order
from .prefetch import Buffers, EpochHandle, SafeEpochIterator
from .spread import make_decoder

_SKIP = (
    "on_error='skip' leaves images out of a batch: only without mixing (cutmix_alpha=0) and with views of count 1; "
    "use on_error='replace'"
)


def _check_skip(on_error: str, alpha: float | Callable[[int], float], views: Sequence[Views]) -> None:
    if on_error == "skip" and (alpha or any(v.count > 1 for v in views)):
        raise ValueError(_SKIP)


def _groups_by_epoch(
    views: tuple[Views, ...], schedule: Mapping[int, Sequence[int]], spread: int
) -> dict[int, tuple[Views, ...]]:
    """The multi-crop groups from an epoch on, for the epochs in which they change; see MultiCropLoader."""
    result = {0: views}
    for epoch, sizes in sorted(schedule.items()):
        if epoch < 0 or len(sizes) != len(views):
            raise ValueError(
                f"schedule has a size for each of the {len(views)} groups, from an epoch of at least 0 on; not "
                f"{list(sizes)} from {epoch} on"
            )
        first = epoch if spread < 1 else -(-epoch // spread) * spread
        result[first] = tuple(replace(view, size=size) for view, size in zip(views, sizes))
    return result


def _usable_workers(num_workers: int) -> int:
    """The number of threads: at most one a core this process may use; 0: one a core."""
    cores = limits.cores()
    if num_workers > cores:
        warnings.warn(
            f"num_workers={num_workers} is more than the {cores} cores this process may use; using {cores}",
            stacklevel=3,
        )
    return min(num_workers, cores) if num_workers > 0 else cores


class MultiCropLoader(Loader):
    """Batches of augmented crops from a `.beton` file.

    Iterating yields, for each batch of B images, a list with a Group for every entry of `views`: images uint8 (count *
    B, 3, H, W) channels-last, and the index target (idx_a, idx_b, lam). See Views, Group and Augment. Tensors handed
    out stay valid as long as they are held. A batch is a function of (seed, epoch, step) alone, bit for bit, whatever
    the number of workers.

    While an epoch is consumed, the first batches of the next one are made ahead. They are handed out if the next
    iteration is that epoch's, with the same settings, and else thrown away.

    Args:
        path: the file.
        batch_size: images of a batch of this process, at least 1.
        num_workers: threads; 0: one a core.
        seed: of everything random, 0..2**64 - 1.
        cutmix_alpha: of the Beta distribution of CutMix's lam; 0: no CutMix. Or a function of the epoch.
        views: the multi-crop groups.
        augment: which augmentations run; None: all of IDMM's.
        shuffle: a new order each epoch.
        rows: use these dataset rows only: integers (a row may come twice), or a mask of bool of the dataset's length.
        drop_last: leave out the last partial batch.
        batches_ahead: batches made in advance, at least 1.
        epochs: number of epochs, at least 1: no batch of a later one is made ahead; None: it is not known.
        cutmix_chunk: so many neighbouring images mix among themselves; 0: all of a batch.
        cutmix_per_row: a box for each row.
        on_error: "raise"; "replace" an image that can't be decoded by the next row's, with a warning, counted in
            `replaced`; or "skip" it, with a warning, counted in `skipped`: the batch is that much smaller, perhaps
            empty. "skip" goes with one crop an image and no mixing only.
        rank: of this process among those that share every global batch of world_size * batch_size images. If
            cutmix_chunk divides batch_size, they see in parts what one process with that batch size sees, but
            perhaps for the last batch, see `__len__`.
        world_size: number of these processes.
        cache: of `open_cache`: its JPEGs are decoded once. None: in every epoch.
        spread: an image is decoded once for so many epochs, see `spread.SpreadOrder`; 1: in every epoch.
        spread_mb: the most that the crops of later epochs take, in MB, of all processes together.
        schedule: {epoch: side of the crops of each group from it on, pixels}; those of `views` hold before the first of
            these epochs. With spread a change waits for the next round, for an epoch that `spread` divides.

    Raises:
        FileNotFoundError: there is no such file.
        BetonError: it is not an intact beton.
        ValueError: an argument is out of its bounds.
        LoaderError: while iterating, for an image that can't be decoded; the message names file and row.
    """

    # FFCV's constructor is not called: it reads 1.28 million rows into Python dictionaries (2.4 s, 633 MB), compiles
    # for seconds and changes torch's thread count. What its other methods use is set here.
    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        cutmix_alpha: float | Callable[[int], float] = 0.5,
        views: Sequence[Views] = IDMM_VIEWS,
        augment: Augment | None = None,
        *,
        shuffle: bool = True,
        rows: Any = None,
        drop_last: bool = False,
        batches_ahead: int = 2,
        epochs: int | None = None,
        cutmix_chunk: int = 0,
        cutmix_per_row: bool = False,
        on_error: str = "raise",
        rank: int = 0,
        world_size: int = 1,
        cache: ImageCache | None = None,
        spread: int = 1,
        spread_mb: int = 1024,
        schedule: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.beton = open_beton(path)
        self.fname = str(path)  # FFCV's name of it
        self.batch_size, self.seed, self.drop_last = int(batch_size), int(seed), drop_last
        self.batches_ahead, self.views = int(batches_ahead), tuple(views)
        self.rank, self.world_size, self.epochs = int(rank), int(world_size), epochs
        cutmix = CutMixSpec(cutmix_alpha, int(cutmix_chunk), bool(cutmix_per_row))
        self._check(cutmix, on_error)
        self.num_workers = _usable_workers(num_workers)
        self.indices = row_numbers(rows, self.beton)
        failed = FailedImages(self.beton.path, self.indices, on_error)
        order = Order(
            self.indices, self.seed, shuffle, drop_last, self.batch_size, self.rank, self.world_size, cutmix.chunk or 1
        )
        groups = _groups_by_epoch(self.views, schedule or {}, spread)
        self.largest = max(view.size for views in groups.values() for view in views)  # side of a crop, pixels
        source = (self.beton, groups, augment or Augment(), cutmix, self.seed, self.num_workers, failed)
        self.traversal_order, self.decoder = make_decoder(order, spread, spread_mb, epochs, source)
        if cache is not None:
            self.decoder.cache = cache.for_rows(self.beton, self.indices)
        self.cache = self.decoder.cache
        largest = min(self.batch_size, self.indices.size)
        self.buffers = Buffers(self.decoder.buffer_size(largest), self.batches_ahead + 2)
        self.waited = 0.0  # seconds that consumers spent waiting for a batch
        self.next_epoch, self._first_step = 0, 0  # where the next iteration begins
        self._position_is_set = False  # whether set_epoch or load_state_dict told so since the current one began
        self._iterator: Any = None  # the current iteration
        self._iterations = 0  # that were begun or ended by load_state_dict; tells old handles from the current one
        self._set_up_ffcv()
        weakref.finalize(self, self.decoder.abandon)

    def _check(self, cutmix: CutMixSpec, on_error: str) -> None:
        """Raise ValueError for arguments that are out of their bounds."""
        if self.batch_size < 1 or self.batches_ahead < 1:
            raise ValueError(
                f"batch_size and batches_ahead are at least 1, not {self.batch_size} and {self.batches_ahead}"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs is at least 1, or None where it is not known, not {self.epochs}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is an integer in 0..2**64 - 1, not {self.seed}")
        if on_error not in ("raise", "replace", "skip"):
            raise ValueError(f"on_error is 'raise', 'replace' or 'skip', not '{on_error}'")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is one of 0..{self.world_size - 1}, not {self.rank}")
        if cutmix.chunk and self.batch_size % cutmix.chunk:
            raise ValueError(f"cutmix_chunk {cutmix.chunk} does not divide batch_size {self.batch_size}")
        if not self.views:
            raise ValueError("views is empty: name at least one group, e.g. [Views(2, 112)]")
        _check_skip(on_error, cutmix.alpha, self.views)

    def _set_up_ffcv(self) -> None:
        """Set what FFCV's Loader expects its own constructor to have set."""
        self.distributed, self.recompile = False, False
        self.first_traversal_order = self.indices  # FFCV's __len__ counts these
        self.pipeline_specs = {"image": PipelineSpec("image", decoder=self.decoder)}
        fields, columns = {"image": RGBImageField()}, {"image": int(self.beton.image_column[1:])}
        self.graph = Graph(self.pipeline_specs, fields, columns, self.beton.metadata, None)
        self.generate_code()

    def generate_code(self) -> None:
        # The kernels are compiled already; FFCV's own switch leaves the functions around them as they are.
        enabled = Compiler.is_enabled
        Compiler.set_enabled(False)
        try:
            super().generate_code()
        finally:
            Compiler.set_enabled(enabled)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch` (0, 1, ...); without it, each iteration is the next epoch's."""
        self._set_position(epoch, 0)

    def _set_position(self, epoch: int, step: int) -> None:
        if epoch < 0 or step < 0:
            raise ValueError(f"epochs and steps are counted from 0: there is no step {step} of epoch {epoch}")
        self.next_epoch, self._first_step, self._position_is_set = int(epoch), int(step), True

    @property
    def cutmix_alpha(self) -> float | Callable[[int], float]:
        """Of the Beta distribution of CutMix's lam; may be set between two epochs."""
        return self.decoder.cutmix.alpha

    @cutmix_alpha.setter
    def cutmix_alpha(self, alpha: float | Callable[[int], float]) -> None:
        _check_skip(self.decoder.failed.on_error, alpha, self.views)
        self.decoder.cutmix = replace(self.decoder.cutmix, alpha=alpha)

    @property
    def replaced(self) -> dict[int, tuple[int, str]]:
        """The images that could not be decoded so far, with on_error="replace": {row: (row that replaces it, why)}."""
        return self.decoder.failed.replaced

    @property
    def skipped(self) -> dict[int, str]:
        """The images that were left out so far, with on_error="skip": {row: why}."""
        return self.decoder.failed.skipped

    def __len__(self) -> int:
        """Batches an epoch. The last one counts if each process gets an image of it, or with cutmix_chunk a chunk."""
        return len(self.traversal_order)

    def local_rows(self, order: np.ndarray, step: int) -> tuple[np.ndarray, int]:
        """The part of a global batch that is this process's.

        Args:
            order: int64 (n,), the rows of an epoch.
            step: number of the batch.

        Returns:
            (int64 (B,), its rows; place of the first of them in the global batch).
        """
        return self.traversal_order.local_rows(order, step)

    def global_batch_len(self, step: int) -> int:
        """How many images batch `step` of an epoch has, those of all processes together."""
        size = self.batch_size * self.world_size
        return min(size, self.indices.size - step * size)

    def loss_weight(self, step: int) -> float:
        """What to multiply this process's mean loss of batch `step` by.

        The mean of the products over all processes is then the mean over the images of the global batch.

        Returns:
            The number of this process's images over that of the average process.
        """
        images = self.global_batch_len(step)
        first, last = self.traversal_order.local_part(images)
        return (last - first) * self.world_size / images

    def __iter__(self) -> EpochHandle:
        self.epoch, first_step, ahead = self.next_epoch, self._first_step, self._iterator
        if not (
            isinstance(ahead, SafeEpochIterator) and ahead.begin_epoch(self.epoch, first_step, self.decoder.cutmix)
        ):
            self.close()
            self._iterator = self._iterate(self.next_traversal_order(), first_step)
        self.next_epoch, self._first_step, self._position_is_set = self.epoch + 1, 0, False
        self._iterations += 1
        return EpochHandle(self, self._iterator)

    def _iterate(self, order: np.ndarray, first_step: int) -> Any:
        """An iterator over the batches of the epoch `self.epoch` from `first_step` on, with `yielded` and `close`."""
        return SafeEpochIterator(self, order, self.epoch, first_step)

    def close(self) -> None:
        """End the current iteration, and drop what is made ahead; the thread has ended when this returns."""
        if self._iterator is not None:
            self._iterator.close()

    def state_dict(self) -> dict[str, int]:
        """Where to resume.

        Returns:
            {"epoch", "step"} of the batch that comes next in the current iteration. If there is none, if it has ended,
            or if set_epoch or load_state_dict was called since, those of the first batch of the next iteration.
        """
        if self._position_is_set or self._iterator is None or self._iterator.yielded >= len(self):
            return {"epoch": self.next_epoch, "step": self._first_step}
        return {"epoch": self.epoch, "step": self._iterator.yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """End the current iteration; the next one resumes where `state_dict` was taken, with the same batches."""
        self._set_position(state["epoch"], state["step"])
        self.close()
        self._iterator = None
        self._iterations += 1

    def filter(self, field_name: str, condition: Callable) -> None:
        raise NotImplementedError("choose rows with MultiCropLoader(..., rows=...)")
