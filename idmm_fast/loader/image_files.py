"""Image files as evaluation sees them, without a conversion: the same kernels, so the same pixels to the last bit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from .. import limits
from ..beton.encode import has_its_tables, plain_jpeg, read_rgb
from ..beton.format import JPG, RAW
from ..beton.jpeg import MESSAGES, OK
from ..beton.pixels import reason_of
from .cache import ImageCache
from .crops import Augment, crop_table
from .decoder import announce_compilation
from .evaluation import evaluation_views
from .render import Scratch, render_batch

IMAGES_PER_TASK = 8  # that a thread is given at once
BATCHES_AHEAD = 2

# What the kernel is told of a file that holds one image, beside the image: its row is 0 and begins at 0, nothing is
# mixed, no checksums, no cache.
_ZERO, _NO_BOX, _NO_SUMS = np.zeros(1, np.int64), np.zeros((1, 4), np.int64), np.empty(0, np.uint64)
_NO_CACHE = ImageCache.none(1).arrays
_MODES = {mode: np.full(1, mode, np.uint8) for mode in (JPG, RAW)}


class ImageFiles:
    """Batches of image files, each resized and cut out at the centre as `evaluation_loader` does it.

    Whatever PIL reads can be given. The pixels are those that a beton of raw pixels would hold, and those of a beton of
    JPEGs where the file would be stored as it is.

    Args:
        sources: paths.
        size: side of the images, pixels.
        batch_size: images of a batch.
        num_workers: threads; 0: one a core.

    Attributes:
        damaged: {number of the source: why it could not be read}, of those seen so far.
    """

    def __init__(self, sources: Sequence[str | Path], size: int, batch_size: int = 256, num_workers: int = 0) -> None:
        self.sources, self.size, self.batch_size = sources, size, batch_size
        self.damaged: dict[int, str] = {}
        self._workers = num_workers or limits.cores()
        self._specs = crop_table(evaluation_views(size), Augment.none())
        self._local = threading.local()

    def __len__(self) -> int:
        return -(-len(self.sources) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """For each batch: uint8 (B, 3, S, S), and int64 (B,), which of the sources these are. B is perhaps 0."""
        announce_compilation()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="idmm-files")
        ahead: deque[tuple[int, np.ndarray, list[Future]]] = deque()
        try:
            for first in range(0, len(self.sources), self.batch_size):
                ahead.append(self._submit(pool, first))
                if len(ahead) > BATCHES_AHEAD:
                    yield self._finish(*ahead.popleft())
            while ahead:
                yield self._finish(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, first: int) -> tuple[int, np.ndarray, list[Future]]:
        """Begin the batch whose first source is number `first`."""
        count = min(self.batch_size, len(self.sources) - first)
        pixels = np.empty((count, self.size, self.size, 3), np.uint8)

        def work(places: range) -> list[str | None]:
            return [self._render(self.sources[first + place], pixels[place].reshape(-1)) for place in places]

        parts = [range(k, min(k + IMAGES_PER_TASK, count)) for k in range(0, count, IMAGES_PER_TASK)]
        return first, pixels, [pool.submit(work, part) for part in parts]

    def _finish(self, first: int, pixels: np.ndarray, parts: list[Future]) -> tuple[torch.Tensor, np.ndarray]:
        """The batch, without the images that could not be read."""
        reasons = [reason for part in parts for reason in part.result()]
        self.damaged |= {first + k: reason for k, reason in enumerate(reasons) if reason is not None}
        good = np.array([reason is None for reason in reasons])
        if not good.all():
            pixels = pixels[good]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), first + np.flatnonzero(good)

    def _render(self, source: str | Path, out: np.ndarray) -> str | None:
        """Write the image to `out`, uint8 (S * S * 3,); in a thread. Returns why it could not be read, or None."""
        try:
            with open(source, "rb", buffering=0) as file:
                data = file.readall()
            size = plain_jpeg(data)
            if size and has_its_tables(data):  # the kernel decodes it itself, which spares two copies of the pixels
                code = self._render_stored(JPG, np.frombuffer(data, np.uint8), size[0], size[1], out)
                if code == OK:
                    return None
            image = read_rgb(data)
        except Exception as error:  # PIL raises many kinds for damaged files
            return " ".join(reason_of(error).split())  # on one line
        code = self._render_stored(RAW, image.reshape(-1), image.shape[0], image.shape[1], out)
        return None if code == OK else MESSAGES[code]

    def _render_stored(self, mode: int, data: np.ndarray, height: int, width: int, out: np.ndarray) -> int:
        """The one crop of an image, made by the loader's own kernel from a file that holds this image alone."""
        scratch = self._scratch(height, width)
        heights, widths, lengths = np.array([[height], [width], [data.size]])
        _, code = render_batch(
            0,
            1,
            _ZERO,
            data,
            _MODES[mode],
            heights,
            widths,
            _ZERO,
            lengths,
            _NO_SUMS,
            *_NO_CACHE,
            np.uint64(0),
            0,
            self._specs,
            _ZERO,
            _NO_BOX,
            _ZERO,
            out,
            scratch.decoder.handle,
            *scratch.arrays,
        )
        return code

    def _scratch(self, height: int, width: int) -> Scratch:
        """The scratch of this thread, made anew where an image is larger than those before it."""
        known, wanted = getattr(self._local, "fits", (0, 0, 0)), (height, width, height * width)
        if any(new > old for new, old in zip(wanted, known)):
            fits = [max(new, old) for new, old in zip(wanted, known)]
            self._local.scratch = Scratch(fits[0], fits[1], fits[2], self._specs)  # may raise MemoryError
            self._local.fits = fits
        return self._local.scratch
