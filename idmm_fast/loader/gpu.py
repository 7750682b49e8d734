"""GPU augmentation: the same crops made on the device that trains, from decoded images that are kept there.

For small datasets, where there are too few cores for a GPU. What is sampled is the same as for the CPU kernels, the
pixels differ by 2 levels at most. The arithmetic is in gpu_augment.py.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..beton.decode import iter_rows
from .crops import Augment, Group
from .gpu_augment import FIELDS, render_groups
from .loader import MultiCropLoader
from .order import SpreadOrder

# The fields of Augment that gpu_augment.py knows.
_AUGMENTS = {
    "flip_prob",
    "jitter_prob",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grayscale_prob",
    "blur_prob",
    "blur_sigma",
}
_ALIGNMENT = 64  # bytes: what a compiled graph reads where its inputs lie aligned


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on the device, by one copy, and without waiting for what the device is doing."""
    offsets = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)])
    packed = np.zeros(offsets[-1], np.uint8)
    for array, first in zip(arrays, offsets):
        packed[first : first + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sent = torch.from_numpy(packed)
    if device.type == "cuda":
        sent = sent.pin_memory().to(device, non_blocking=True)
    types = [torch.from_numpy(array[:0]).dtype for array in arrays]
    return [
        sent[first : first + array.nbytes].view(dtype).view(array.shape)
        for array, first, dtype in zip(arrays, offsets, types)
    ]


class DeviceLoader(MultiCropLoader):
    """MultiCropLoader whose batches are made on a device, where all images of the beton are kept decoded.

    They are padded to the largest: uint8 (N, H, W, 3).

    Args:
        path: the file.
        batch_size: images of a batch.
        *args: of MultiCropLoader.
        device: where to compute.
        compile: with torch.compile.
        **options: of MultiCropLoader.

    Raises:
        ValueError: crops other than random bilinear ones, or augmentations that are not made here (RandAugment).
        MemoryError: the images don't fit.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        *args: Any,
        device: str | torch.device,
        compile: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(path, batch_size, *args, **options)
        self.device = torch.device(device)
        self._check_device()
        shape = int(self.beton.height.max()), int(self.beton.width.max())
        self.images = torch.zeros(len(self.beton), *shape, 3, dtype=torch.uint8, device=self.device)
        self._decode_images()
        self._render = torch.compile(render_groups, dynamic=False) if compile else render_groups

    def _check_device(self) -> None:
        """Refuse what can't be made here, and images that don't fit."""
        _, specs = self.decoder.groups_at(0)
        others = [f.name for f in fields(Augment) if f.name not in _AUGMENTS and specs[f.name].any()]
        if others or any(v.resize or v.interpolation != "bilinear" for v in self.views):
            without = f", without {', '.join(others)}" if others else ""
            raise ValueError(
                f"on the device there are random crops with bilinear filters only{without}; use data.augment_on=cpu"
            )
        if self.decoder.failed.on_error != "raise":
            raise ValueError(f"data.on_error={self.decoder.failed.on_error} goes with data.augment_on=cpu only")
        if isinstance(self.traversal_order, SpreadOrder):
            raise ValueError("on the device all images are decoded once already; use crops.spread=1")
        height, width = int(self.beton.height.max()), int(self.beton.width.max())
        needed = len(self.beton) * height * width * 3
        if self.device.type == "cuda" and needed > torch.cuda.mem_get_info(self.device)[0] // 2:
            raise MemoryError(
                f"{len(self.beton)} images of up to {width} x {height} pixels take {needed / 2**30:.1f} GB on "
                f"{self.device}, more than half of what is free; use data.augment_on=cpu, or smaller images "
                f"(idmm-fast convert --max-resolution)"
            )

    def _iterate(self, order: np.ndarray, first_step: int) -> "_DeviceIterator":
        return _DeviceIterator(self, order, first_step)

    def _decode_images(self) -> None:
        """Fill `images`, in as many threads as the loader has."""
        rows = np.unique(self.indices)
        parts = np.array_split(rows, min(rows.size, 8 * self.num_workers))
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="idmm-decode") as pool:
            for _ in pool.map(self._decode_rows, parts):  # an error of a thread is raised here
                pass

    def _decode_rows(self, rows: np.ndarray) -> None:
        for row, image in zip(rows, iter_rows(self.beton, rows)):
            self.images[row, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).to(self.device)

    @torch.no_grad()
    def make_batch(self, rows: np.ndarray, step: int, first: int) -> list[Group]:
        """The groups of a batch.

        A partial one is not compiled: its graph would take as long as that of whole ones.

        Args:
            rows: int64 (B,), of the dataset.
            step: number of the batch in the epoch.
            first: place of the first image in the global batch.
        """
        samples = self.decoder.sample_crops(self.epoch, rows)
        mixes = self.decoder.sample_cutmix(self.epoch, step, len(rows), first)
        views, specs = self.decoder.groups_at(self.epoch)
        arrays, shapes, crop = [rows], [], 0
        for view, mix in zip(views, mixes):
            spec = specs[crop]
            shapes.append((view.size, int(np.ceil(3 * spec["blur_sigma"][1])) if spec["blur_prob"] else 0))
            arrays += [samples[key][crop : crop + view.count] for key in FIELDS]
            arrays += [mix.box, mix.partner, mix.lam.astype(np.float32)]
            crop += view.count
        on_device, *drawn = to_device(arrays, self.device)
        names = (*FIELDS, "box", "partner", "lam")
        draws = [dict(zip(names, drawn[k : k + len(names)])) for k in range(0, len(drawn), len(names))]
        is_whole = len(rows) == len(self.local_rows(self.indices, 0)[0])
        pixels = (self._render if is_whole else render_groups)(self.images, on_device, draws, shapes)
        groups = []
        for view, images, mine in zip(views, pixels, draws):
            idx = on_device.repeat(view.count)
            groups.append(Group(images, idx, idx[mine["partner"]], mine["lam"]))
        return groups


class _DeviceIterator:
    """One pass over `order` from batch `first_step` on. A batch is made when asked for: a GPU works ahead itself."""

    def __init__(self, loader: DeviceLoader, order: np.ndarray, first_step: int) -> None:
        self.loader, self.order, self.yielded, self._ended = loader, order, first_step, False

    def __iter__(self) -> Iterator[list[Group]]:
        return self

    def __next__(self) -> list[Group]:
        if self._ended or self.yielded >= len(self.loader):
            raise StopIteration
        began = time.perf_counter()
        rows, first = self.loader.local_rows(self.order, self.yielded)
        batch = self.loader.make_batch(np.ascontiguousarray(rows, np.int64), self.yielded, first)
        self.loader.waited += time.perf_counter() - began
        self.yielded += 1
        return batch

    def close(self) -> None:
        self._ended = True
