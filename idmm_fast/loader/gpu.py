"""The same views made on the device that trains, from images that lie there decoded: for small datasets, where there are too few cores for a GPU.

The draws are those of the CPU kernels, the pixels differ by 2 levels at most. The arithmetic is torch's and compiles: resampling is two products with
matrices of filter weights, colours are computed for all rows and chosen, the blur is a sum of shifted images.
"""

import time

import numpy as np
import torch

from ..beton.decode import iter_rows
from ..kernels.blur import MIN_SIGMA
from ..kernels.color import BRIGHTNESS, CONTRAST, HUE, SATURATION
from .decoder import Group
from .loader import MultiCropLoader

_LUMA = (0.299, 0.587, 0.114)


def filters(first, length, size, whole, flip=None):
    """Weights float32 (B, size, whole) that resample `length` pixels from `first` on (both (B,)) to `size`, PIL's antialiased bilinear; with
    `flip` (bool (B,)) the outputs come in reverse."""
    ratio = length[:, None] / size
    at = torch.arange(size, device=length.device, dtype=torch.float32)[None]
    if flip is not None:
        at = torch.where(flip[:, None], size - 1 - at, at)
    centre = ((at + 0.5) * ratio)[:, :, None]
    pixel = torch.arange(whole, device=length.device, dtype=torch.float32)[None, None] - first[:, None, None]
    distance = (pixel + 0.5 - centre) / ratio.clamp(min=1)[:, :, None]
    weights = (1 - distance.abs()).clamp(min=0) * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def resample(images, top, left, height, width, flip, size):
    """float32 (B, 3, size, size) of levels: a crop of each of `images` (uint8 (B, H, W, 3)), resized."""
    b, h, w, _ = images.shape
    down, across = filters(top, height, size, h), filters(left, width, size, w, flip)
    rows = (down @ images.float().reshape(b, h, w * 3)).reshape(b, size, w, 3)
    return (rows.permute(0, 3, 1, 2) @ across.transpose(1, 2)[:, None]).clamp(0, 255)


def _luma(x):
    return _LUMA[0] * x[:, :1] + _LUMA[1] * x[:, 1:2] + _LUMA[2] * x[:, 2:]


def turn_hue(x, shift):
    """HSV and back: the hue of x (B, 3, S, S) turned by `shift` (B, 1, 1, 1) turns."""
    r, g, b = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    scale = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(value == g, (b - r) * scale + 2, (r - g) * scale + 4)
    h = torch.where(value == r, (g - b) * scale, sector) + 6 * shift[:, 0]
    h = torch.remainder(h, 6)
    shares = ((h - 3).abs() - 1, 2 - (h - 2).abs(), 2 - (h - 4).abs())
    return torch.stack([least + chroma * share.clamp(0, 1) for share in shares], 1)


def recolor(x, d):
    """Jitter in the order drawn, then grayscale; `d`: the fields of DRAW, each (B,) or (B, 4)."""
    factors = {key: d[key][:, None, None, None] for key in ("brightness", "contrast", "saturation", "hue")}
    jitter = d["jitter"].bool()
    for place in range(4):
        which = torch.where(jitter, d["order"][:, place], -1)[:, None, None, None]
        luma = _luma(x)
        mean, chosen = luma.mean((2, 3), keepdim=True), x
        for number, made in (
            (BRIGHTNESS, (x * factors["brightness"]).clamp(0, 255)),
            (CONTRAST, (x * factors["contrast"] + (1 - factors["contrast"]) * mean).clamp(0, 255)),
            (SATURATION, (x * factors["saturation"] + (1 - factors["saturation"]) * luma).clamp(0, 255)),
            (HUE, turn_hue(x, factors["hue"])),
        ):
            chosen = torch.where(which == number, made, chosen)
        x = chosen
    return torch.where(d["gray"].bool()[:, None, None, None], _luma(x).expand_as(x), x)


def blur(x, sigma, radius):
    """A separable Gaussian cut at 3 sigma, the edge pixel repeated; sigma (B,), 0 for none; `radius` of the largest one."""
    place = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)[None]
    some = sigma[:, None].clamp(min=MIN_SIGMA)
    weights = torch.exp(-0.5 * (place / some) ** 2) * (place.abs() <= torch.ceil(3 * some))
    weights = weights / weights.sum(1, keepdim=True)
    size, out = x.shape[-1], x
    for dim in (3, 2):
        padded = torch.nn.functional.pad(
            out, (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius), mode="replicate"
        )
        out = sum(weights[:, k, None, None, None] * padded.narrow(dim, k, size) for k in range(2 * radius + 1))
    return torch.where((sigma >= MIN_SIGMA)[:, None, None, None], out, x)


def render(images, draws, box, partner, size, radius):
    """A group: uint8 (count * B, 3, size, size), channels-last, mixed. images: uint8 (B, H, W, 3), padded. draws: {field of DRAW: (count, B, ...)}. box:
    int64 (count * B, 4), partner: int64 (count * B,), CutMix's."""
    views = [
        resample(
            images,
            *(draws[key][v].float() for key in ("top", "left", "height", "width")),
            draws["flip"][v].bool(),
            size,
        )
        for v in range(draws["top"].shape[0])
    ]
    x = torch.cat(views)
    x = recolor(x, {key: value.flatten(0, 1) for key, value in draws.items()})
    if radius:
        x = blur(x, draws["sigma"].flatten(), radius)
    x = (x.clamp(0, 255) + 0.5).to(torch.uint8)
    y = torch.arange(size, device=x.device)
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((y >= left) & (y < right))[:, None, None, :]
    return torch.where(inside, x[partner], x).contiguous(memory_format=torch.channels_last)


_FIELDS = (
    "top",
    "left",
    "height",
    "width",
    "flip",
    "jitter",
    "order",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "gray",
    "sigma",
)


class DeviceLoader(MultiCropLoader):
    """MultiCropLoader whose batches are made on `device`, where all images of the beton are kept, decoded and padded to the largest: uint8
    (N, H, W, 3). Random crops with bilinear filters only, and no RandAugment.

    compile: with torch.compile. Raises ValueError where the images or these views can't be made so, MemoryError where they don't fit.
    """

    def __init__(self, path, batch_size, *args, device, compile=False, **options):
        super().__init__(path, batch_size, *args, **options)
        if (
            any(v.resize or v.interpolation != "bilinear" for v in self.views)
            or self.operation.table["randaugment"].any()
        ):
            raise ValueError(
                "views are made on the device from bilinear random crops without RandAugment only; use data.augment_on=cpu"
            )
        if self.operation.on_error != "raise":
            raise ValueError(f"data.on_error={self.operation.on_error} goes with data.augment_on=cpu only")
        height, width = int(self.beton.height.max()), int(self.beton.width.max())
        self.device, needed = torch.device(device), len(self.beton) * height * width * 3
        if self.device.type == "cuda" and needed > torch.cuda.mem_get_info(self.device)[0] // 2:
            raise MemoryError(
                f"{len(self.beton)} images of up to {width} x {height} pixels take {needed / 2**30:.1f} GB on {self.device}, more than half of what is free; "
                f"use data.augment_on=cpu, or smaller images (write_datasets.py --max-resolution)"
            )
        self.images = torch.zeros(len(self.beton), height, width, 3, dtype=torch.uint8, device=self.device)
        rows = np.unique(self.indices)
        for row, image in zip(rows, iter_rows(self.beton, rows)):
            self.images[row, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).to(self.device)
        self._render = torch.compile(render, dynamic=False) if compile else render

    def _begin(self, order, first_step):
        return _Steps(self, order, first_step)

    def _sent(self, array):
        """The array as a tensor on the device, without waiting for what the device is doing."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor.to(self.device)
        )

    @torch.no_grad()
    def make(self, rows, step, first):
        """The groups of the batch `rows` (int64 (B,)), the first image being number `first` of the global batch: list of Group."""
        draws = self.operation.draws(self.epoch, rows)
        mixes = self.operation.cutmix(self.epoch, step, len(rows), first)
        images, groups, done = self.images[self._sent(rows)], [], 0
        for view, mix in zip(self.views, mixes):
            fields = {key: self._sent(draws[key][done : done + view.count]) for key in _FIELDS}
            radius = (
                int(np.ceil(3 * self.operation.table["sigma"][done][1]))
                if self.operation.table["blur_prob"][done]
                else 0
            )
            pixels = self._render(images, fields, self._sent(mix.box), self._sent(mix.partner), view.size, radius)
            idx = np.tile(rows, view.count)
            a, b, lam = (
                torch.from_numpy(idx),
                torch.from_numpy(idx[mix.partner]),
                torch.from_numpy(mix.lam.astype(np.float32)),
            )
            groups.append(Group(pixels, a, b, lam))
            done += view.count
        return groups


class _Steps:
    """One pass over `order` from batch `first_step` on; each batch is made when it is asked for, since a GPU is only told what to do."""

    def __init__(self, loader, order, first_step):
        self.loader, self.order, self.yielded, self._over = loader, order, first_step, False

    def __iter__(self):
        return self

    def __next__(self):
        if self._over or self.yielded >= len(self.loader):
            raise StopIteration
        began = time.perf_counter()
        rows, first = self.loader.rows_of(self.order, self.yielded)
        batch = self.loader.make(np.ascontiguousarray(rows, np.int64), self.yielded, first)
        self.loader.waited += time.perf_counter() - began
        self.yielded += 1
        return batch

    def close(self):
        self._over = True
