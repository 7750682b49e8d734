"""MultiCropLoader: FFCV's Loader with the multi-crop and CutMix decoder inside."""

import warnings
import weakref
from dataclasses import replace

import numpy as np

from .. import limits
from ..beton import open_beton
from ..kernels.philox import ORDER_STREAM, permutation
from .decoder import CutMixSpec, MultiCropDecoder, Views, row_numbers
from .ffcv_compat import Compiler, Graph, Loader, PipelineSpec, RGBImageField, TraversalOrder
from .prefetch import Buffers, SafeEpochIterator
from .sampling import Augment

_SKIP = "on_error='skip' leaves images out of a batch: only without mixing (cutmix_alpha=0) and with views of count 1; use on_error='replace'"
IDMM_VIEWS = (Views(2, 112, (0.14, 1.0)), Views(4, 112, (0.05, 0.4)))


class _Order(TraversalOrder):
    def __init__(self, loader, shuffle):
        self.loader, self.shuffle = loader, shuffle

    def sample_order(self, epoch):
        if not self.shuffle:
            return self.loader.indices
        return self.loader.indices[
            permutation(np.uint64(self.loader.seed), 0, epoch, ORDER_STREAM, self.loader.indices.size)
        ]


class MultiCropLoader(Loader):
    """Batches of augmented views from a `.beton` file.

    Iterating yields, for each batch of B images, a list with a Group for every entry of `views`: images uint8
    (count * B, 3, H, W) channels-last, and the index target (idx_a, idx_b, lam). See Views, Group and Augment.

    path: the file. num_workers: threads, 0 for one a core. seed: of everything random; a batch is a function of (seed,
    epoch, step) alone, bit for bit, whatever the number of workers. cutmix_alpha: of the Beta distribution of CutMix's
    share, 0 for none; cutmix_chunk: so many neighbouring images mix among themselves (0: all of a batch);
    cutmix_per_row: a box for each row. augment: which augmentations run (default: all of IDMM's). shuffle: a new order each epoch.
    rows: use these dataset rows only, integers (a row may come twice) or a mask of bool of the dataset's length. drop_last: leave out the
    last partial batch. batches_ahead: batches made in advance.
    on_error: "raise"; or "replace" an image that can't be decoded by the next row, with a warning, counted in `replaced`; or "skip" it, with a
    warning, counted in `skipped`: the batch is that much smaller, perhaps empty; only without mixing and with one view an image.
    rank, world_size: of this process among those that share every global batch of world_size * batch_size images; they see
    what one process with that batch size sees, in parts, if cutmix_chunk divides batch_size.

    Tensors handed out stay valid as long as they are held. Raises FileNotFoundError, BetonError, ValueError at once and
    LoaderError while iterating (a corrupt image, named by file and row).
    """

    # FFCV's constructor is not called: it reads 1.28 million rows into Python dictionaries (2.4 s, 633 MB), compiles for
    # seconds and changes torch's thread count. What its other methods use is set here.
    def __init__(
        self,
        path,
        batch_size,
        num_workers=0,
        seed=0,
        cutmix_alpha=0.5,
        views=IDMM_VIEWS,
        augment=None,
        *,
        shuffle=True,
        rows=None,
        drop_last=False,
        batches_ahead=2,
        cutmix_chunk=0,
        cutmix_per_row=False,
        on_error="raise",
        rank=0,
        world_size=1,
    ):
        self.beton = open_beton(path)
        self.fname, self.batch_size, self.seed, self.drop_last = str(path), int(batch_size), int(seed), drop_last
        self.batches_ahead, self.views, self.distributed, self.recompile = (
            int(batches_ahead),
            tuple(views),
            False,
            False,
        )
        if self.batch_size < 1 or self.batches_ahead < 1:
            raise ValueError(f"batch_size and batches_ahead are at least 1, not {batch_size} and {batches_ahead}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is an integer in 0..2**64 - 1, not {seed}")
        if on_error not in ("raise", "replace", "skip"):
            raise ValueError(f"on_error is 'raise', 'replace' or 'skip', not '{on_error}'")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is one of 0..{world_size - 1}, not {rank}")
        mixing = CutMixSpec(cutmix_alpha, int(cutmix_chunk), bool(cutmix_per_row))
        if mixing.chunk and self.batch_size % mixing.chunk:
            raise ValueError(f"cutmix_chunk {mixing.chunk} does not divide batch_size {self.batch_size}")
        self.rank, self.world_size = int(rank), int(world_size)
        if not self.views:
            raise ValueError("views is empty: name at least one group, e.g. [Views(2, 112)]")
        if on_error == "skip" and (mixing.alpha or any(v.count > 1 for v in self.views)):
            raise ValueError(_SKIP)
        cores = limits.cores()
        self.num_workers = min(num_workers, cores) if num_workers > 0 else cores
        if num_workers > cores:
            warnings.warn(
                f"num_workers={num_workers} is more than the {cores} cores this process may use; using {cores}",
                stacklevel=2,
            )
        self.indices = row_numbers(rows, self.beton)
        self.operation = MultiCropDecoder(
            self.beton,
            self.views,
            augment or Augment(),
            mixing,
            self.seed,
            self.num_workers,
            on_error,
            self.indices,
        )
        self.buffers = Buffers(
            self.operation.buffer_size(min(self.batch_size, self.indices.size)), self.batches_ahead + 2
        )
        self.waited = 0.0  # seconds that consumers spent waiting for a batch
        self.next_epoch, self._first_step, self._iterator = (
            0,
            0,
            None,
        )  # where the next iteration begins, and the current one
        self._told = False  # whether where the next one begins has been told since the current one began
        self.traversal_order = _Order(self, shuffle)
        self.first_traversal_order = self.indices  # FFCV's __len__ counts these
        self.pipeline_specs = {"image": PipelineSpec("image", decoder=self.operation)}
        self.graph = Graph(
            self.pipeline_specs,
            {"image": RGBImageField()},
            {"image": int(self.beton.image_column[1:])},
            self.beton.metadata,
            None,
        )
        self.generate_code()
        weakref.finalize(self, self.operation.close)

    def generate_code(self):
        # The kernels are compiled already; FFCV's own switch leaves the functions around them as they are.
        enabled = Compiler.is_enabled
        Compiler.set_enabled(False)
        try:
            super().generate_code()
        finally:
            Compiler.set_enabled(enabled)

    def set_epoch(self, epoch):
        """Make the next iteration that of `epoch` (0, 1, ...); without it, each iteration is the next epoch's."""
        self.next_epoch, self._first_step, self._told = int(epoch), 0, True

    @property
    def cutmix_alpha(self):
        """Of the Beta distribution of CutMix's share; may be set between two epochs."""
        return self.operation.mixing.alpha

    @cutmix_alpha.setter
    def cutmix_alpha(self, alpha):
        if alpha and self.operation.on_error == "skip":
            raise ValueError(_SKIP)
        self.operation.mixing = replace(self.operation.mixing, alpha=alpha)

    @property
    def replaced(self):
        """The images that could not be decoded so far, with on_error="replace": {row: (what stood in, why)}."""
        return self.operation.replaced

    @property
    def skipped(self):
        """The images that were left out so far, with on_error="skip": {row: why}."""
        return self.operation.skipped

    def __len__(self):
        """Batches an epoch. With several processes the last one counts if each of them gets an image of it."""
        whole, left = divmod(self.indices.size, self.batch_size * self.world_size)
        share = self._share(left)
        return whole + (not self.drop_last and left > share * (self.world_size - 1))

    def _share(self, images):
        """How many of a global batch of so many images a process gets, the last one perhaps fewer: whole chunks."""
        unit = self.operation.mixing.chunk or 1
        return -(-images // (self.world_size * unit)) * unit

    def rows_of(self, order, step):
        """(the rows of batch `step` of an epoch's `order` that are this process's, the place of the first in the global batch)."""
        size = self.batch_size * self.world_size
        batch = order[step * size : (step + 1) * size]
        share = self._share(batch.size)
        first = self.rank * share
        return batch[first : first + share], first

    def images_of(self, step):
        """How many images the batch `step` of an epoch has, those of all processes together."""
        size = self.batch_size * self.world_size
        return min(size, self.indices.size - step * size)

    def share_of(self, step):
        """What this process's images of batch `step` weigh in a mean over all: their number as a share of the average process's."""
        images = self.images_of(step)
        share = self._share(images)
        return max(0, min(share, images - self.rank * share)) * self.world_size / images

    def __iter__(self):
        self.close()
        self.epoch = self.next_epoch
        self._iterator = self._begin(self.next_traversal_order(), self._first_step)
        self.next_epoch, self._first_step, self._told = self.epoch + 1, 0, False
        return _Handle(self, self._iterator)

    def _begin(self, order, first_step):
        """What makes the batches of the epoch `self.epoch` from `first_step` on: an iterator with `yielded` and `close`."""
        return SafeEpochIterator(self, order, self.epoch, first_step)

    def close(self):
        """End the current iteration, if there is one; its thread is gone when this returns."""
        if self._iterator is not None:
            self._iterator.close()

    def state_dict(self):
        """Where to go on: {"epoch", "step"} of the batch that comes next in the current iteration, or of the first one of the next iteration if there
        is none, if it has ended, or if set_epoch or load_state_dict has told where the next one begins."""
        if self._told or self._iterator is None or self._iterator.yielded >= len(self):
            return {"epoch": self.next_epoch, "step": self._first_step}
        return {"epoch": self.epoch, "step": self._iterator.yielded}

    def load_state_dict(self, state):
        """Make the next iteration go on where `state_dict` was taken, with the same batches bit for bit. It ends the current one."""
        self.close()
        self.next_epoch, self._first_step, self._told, self._iterator = (
            int(state["epoch"]),
            int(state["step"]),
            True,
            None,
        )

    def filter(self, field_name, condition):
        raise NotImplementedError("choose rows with MultiCropLoader(..., rows=...)")


class _Handle:
    """What a `for` loop holds: when it is left early, by `break` or an exception, the thread behind it ends. A loader has one iteration at a time: a
    handle that is advanced after another one was begun raises RuntimeError."""

    def __init__(self, loader, iterator):
        self._loader, self._iterator, self._over = loader, iterator, False
        self._finalizer = weakref.finalize(self, iterator.close)

    def __iter__(self):
        return self

    def __next__(self):
        if self._over:
            raise StopIteration
        if self._loader._iterator is not self._iterator:
            raise RuntimeError(
                f"this iteration over {self._loader.fname} was ended by a later iter() or load_state_dict() of the same loader, which has one at a time; "
                "make a second MultiCropLoader to have two"
            )
        try:
            return next(self._iterator)
        except BaseException:
            self._over = True
            raise

    def close(self):
        self._over = True
        self._finalizer()


def evaluation_loader(path, batch_size, size, num_workers=0, rows=None, on_error="raise", interpolation="bicubic"):
    """Every image once, in order: the shorter side resized to size * 256 / 224, the centre cut out. One Group a batch; with on_error="skip" without
    the images that can't be decoded, see MultiCropLoader."""
    views = [Views(1, size, interpolation=interpolation, resize=round(size * 256 / 224))]
    return MultiCropLoader(
        path, batch_size, num_workers, 0, 0, views, Augment.none(), shuffle=False, rows=rows, on_error=on_error
    )
