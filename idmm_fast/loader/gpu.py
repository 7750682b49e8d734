"""GPU augmentation: the same crops made on the device that trains, from decoded images that are kept there.

For small datasets, where there are too few cores for a GPU. What is sampled is the same as for the CPU kernels, the
pixels differ by 2 levels at most. The arithmetic is torch's and compiles: resampling is two products with matrices of
filter weights, colours are computed for all rows and then selected, the blur is a sum of shifted images.
"""

import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..beton.decode import iter_rows
from ..kernels.blur import MIN_SIGMA
from ..kernels.color import BRIGHTNESS, CONTRAST, HUE, SATURATION
from .crops import Augment, Group, Views
from .cutmix import CutMix
from .loader import MultiCropLoader

_LUMA = (0.299, 0.587, 0.114)
# The fields of Augment, and of CROP_SAMPLE, that `render` knows.
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
_BOX = ("top", "left", "height", "width")
_FIELDS = (*_BOX, "flip", "jitter", "order", "brightness", "contrast", "saturation", "hue", "gray", "sigma")


def filters(
    first: torch.Tensor, length: torch.Tensor, size: int, full: int, flip: torch.Tensor | None = None
) -> torch.Tensor:
    """Filter weights of a resampling, PIL's antialiased bilinear.

    Args:
        first: float32 (B,), where the source pixels begin.
        length: float32 (B,), how many they are.
        size: of the output, pixels.
        full: of the whole row or column, pixels.
        flip: bool (B,), whether the outputs come in reverse.

    Returns:
        float32 (B, size, full); the weights of an output pixel sum to 1.
    """
    ratio = length[:, None] / size
    at = torch.arange(size, device=length.device, dtype=torch.float32)[None]
    if flip is not None:
        at = torch.where(flip[:, None], size - 1 - at, at)
    centre = ((at + 0.5) * ratio)[:, :, None]
    pixel = torch.arange(full, device=length.device, dtype=torch.float32)[None, None] - first[:, None, None]
    distance = (pixel + 0.5 - centre) / ratio.clamp(min=1)[:, :, None]
    weights = (1 - distance.abs()).clamp(min=0) * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def resample(images: torch.Tensor, box: list[torch.Tensor], flip: torch.Tensor, size: int) -> torch.Tensor:
    """A crop of each image, resized.

    Args:
        images: uint8 (B, H, W, 3).
        box: top, left, height, width of the crops, float32 (B,) each, pixels.
        flip: bool (B,).
        size: of the output, pixels.

    Returns:
        float32 (B, 3, size, size), levels 0..255.
    """
    b, h, w, _ = images.shape
    top, left, height, width = box
    down, across = filters(top, height, size, h), filters(left, width, size, w, flip)
    rows = (down @ images.float().reshape(b, h, w * 3)).reshape(b, size, w, 3)
    return (rows.permute(0, 3, 1, 2) @ across.transpose(1, 2)[:, None]).clamp(0, 255)


def _luma(x: torch.Tensor) -> torch.Tensor:
    return _LUMA[0] * x[:, :1] + _LUMA[1] * x[:, 1:2] + _LUMA[2] * x[:, 2:]


def shift_hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue of x (B, 3, S, S) by `shift` (B, 1, 1, 1), fractions of the hue circle: to HSV and back."""
    r, g, b = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    scale = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(value == g, (b - r) * scale + 2, (r - g) * scale + 4)
    h = torch.where(value == r, (g - b) * scale, sector) + 6 * shift[:, 0]
    h = torch.remainder(h, 6)
    parts = ((h - 3).abs() - 1, 2 - (h - 2).abs(), 2 - (h - 4).abs())
    return torch.stack([least + chroma * part.clamp(0, 1) for part in parts], 1)


def recolor(x: torch.Tensor, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """Colour jitter in the order sampled, then grayscale.

    Args:
        x: float32 (B, 3, S, S), levels 0..255.
        sample: fields of CROP_SAMPLE, each (B,) or (B, 4).
    """
    factors = {key: sample[key][:, None, None, None] for key in ("brightness", "contrast", "saturation", "hue")}
    jitter = sample["jitter"].bool()
    for k in range(4):
        chosen = torch.where(jitter, sample["order"][:, k], -1)[:, None, None, None]
        luma = _luma(x)
        mean, result = luma.mean((2, 3), keepdim=True), x
        for operation, made in (
            (BRIGHTNESS, (x * factors["brightness"]).clamp(0, 255)),
            (CONTRAST, (x * factors["contrast"] + (1 - factors["contrast"]) * mean).clamp(0, 255)),
            (SATURATION, (x * factors["saturation"] + (1 - factors["saturation"]) * luma).clamp(0, 255)),
            (HUE, shift_hue(x, factors["hue"])),
        ):
            result = torch.where(chosen == operation, made, result)
        x = result
    return torch.where(sample["gray"].bool()[:, None, None, None], _luma(x).expand_as(x), x)


def blur(x: torch.Tensor, sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """A separable Gaussian blur cut at 3 sigma, the edge pixel repeated.

    Args:
        x: float32 (B, 3, S, S).
        sigma: float32 (B,), pixels; 0: no blur.
        radius: of the largest sigma, pixels.
    """
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)[None]
    clamped = sigma[:, None].clamp(min=MIN_SIGMA)
    weights = torch.exp(-0.5 * (offset / clamped) ** 2) * (offset.abs() <= torch.ceil(3 * clamped))
    weights = weights / weights.sum(1, keepdim=True)
    out: Any = x
    for dim in (3, 2):
        padding = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded = torch.nn.functional.pad(out, padding, mode="replicate")
        out = sum(weights[:, k, None, None, None] * padded.narrow(dim, k, x.shape[-1]) for k in range(2 * radius + 1))
    return torch.where((sigma >= MIN_SIGMA)[:, None, None, None], out, x)


def render(
    images: torch.Tensor,
    samples: dict[str, torch.Tensor],
    box: torch.Tensor,
    partner: torch.Tensor,
    size: int,
    radius: int,
) -> torch.Tensor:
    """The images of a group, mixed.

    Args:
        images: uint8 (B, H, W, 3), padded.
        samples: {field of CROP_SAMPLE: (count, B, ...)}.
        box: int64 (count * B, 4), CutMix's.
        partner: int64 (count * B,), CutMix's.
        size: of a crop, pixels.
        radius: of the largest blur, pixels; 0: there is none.

    Returns:
        uint8 (count * B, 3, size, size), channels-last.
    """
    crops = [
        resample(images, [samples[key][v].float() for key in _BOX], samples["flip"][v].bool(), size)
        for v in range(samples["top"].shape[0])
    ]
    x = torch.cat(crops)
    x = recolor(x, {key: value.flatten(0, 1) for key, value in samples.items()})
    if radius:
        x = blur(x, samples["sigma"].flatten(), radius)
    x = (x.clamp(0, 255) + 0.5).to(torch.uint8)
    y = torch.arange(size, device=x.device)
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((y >= left) & (y < right))[:, None, None, :]
    return torch.where(inside, x[partner], x).contiguous(memory_format=torch.channels_last)


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
        rows = np.unique(self.indices)
        for row, image in zip(rows, iter_rows(self.beton, rows)):
            self.images[row, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).to(self.device)
        self._render = torch.compile(render, dynamic=False) if compile else render

    def _check_device(self) -> None:
        """Refuse what can't be made here, and images that don't fit."""
        others = [f.name for f in fields(Augment) if f.name not in _AUGMENTS and self.decoder.specs[f.name].any()]
        if others or any(v.resize or v.interpolation != "bilinear" for v in self.views):
            without = f", without {', '.join(others)}" if others else ""
            raise ValueError(
                f"on the device there are random crops with bilinear filters only{without}; use data.augment_on=cpu"
            )
        if self.decoder.failed.on_error != "raise":
            raise ValueError(f"data.on_error={self.decoder.failed.on_error} goes with data.augment_on=cpu only")
        height, width = int(self.beton.height.max()), int(self.beton.width.max())
        needed = len(self.beton) * height * width * 3
        if self.device.type == "cuda" and needed > torch.cuda.mem_get_info(self.device)[0] // 2:
            raise MemoryError(
                f"{len(self.beton)} images of up to {width} x {height} pixels take {needed / 2**30:.1f} GB on "
                f"{self.device}, more than half of what is free; use data.augment_on=cpu, or smaller images "
                f"(write_datasets.py --max-resolution)"
            )

    def _iterate(self, order: np.ndarray, first_step: int) -> "_DeviceIterator":
        return _DeviceIterator(self, order, first_step)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor on the device, without waiting for what the device is doing."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    @torch.no_grad()
    def make_batch(self, rows: np.ndarray, step: int, first: int) -> list[Group]:
        """The groups of a batch.

        Args:
            rows: int64 (B,), of the dataset.
            step: number of the batch in the epoch.
            first: place of the first image in the global batch.
        """
        samples = self.decoder.sample_crops(self.epoch, rows)
        mixes = self.decoder.sample_cutmix(self.epoch, step, len(rows), first)
        images, groups, crop = self.images[self._to_device(rows)], [], 0
        for view, mix in zip(self.views, mixes):
            groups.append(self._make_group(images, samples, rows, view, mix, crop))
            crop += view.count
        return groups

    def _make_group(
        self, images: torch.Tensor, samples: np.ndarray, rows: np.ndarray, view: Views, mix: CutMix, crop: int
    ) -> Group:
        """A group, whose first crop is number `crop` of an image's."""
        spec = self.decoder.specs[crop]
        mine = {key: self._to_device(samples[key][crop : crop + view.count]) for key in _FIELDS}
        radius = int(np.ceil(3 * spec["blur_sigma"][1])) if spec["blur_prob"] else 0
        box, partner = self._to_device(mix.box), self._to_device(mix.partner)
        pixels = self._render(images, mine, box, partner, view.size, radius)
        idx = np.tile(rows, view.count)
        lam = torch.from_numpy(mix.lam.astype(np.float32))
        return Group(pixels, torch.from_numpy(idx), torch.from_numpy(idx[mix.partner]), lam)


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
