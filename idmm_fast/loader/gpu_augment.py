"""The arithmetic of GPU augmentation, in torch, so that it compiles.

Resampling is two products with matrices of filter weights, colours are computed for all rows and then selected, the
blur is a sum of shifted images.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..kernels.blur import MIN_SIGMA
from ..kernels.color import BRIGHTNESS, CONTRAST, HUE, SATURATION

_LUMA = (0.299, 0.587, 0.114)
_BOX = ("top", "left", "height", "width")
# Of CROP_SAMPLE, what `render` looks at.
FIELDS = (*_BOX, "flip", "jitter", "order", "brightness", "contrast", "saturation", "hue", "gray", "sigma")


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


def render_groups(
    images: torch.Tensor,
    rows: torch.Tensor,
    draws: Sequence[dict[str, torch.Tensor]],
    shapes: Sequence[tuple[int, int]],
) -> list[torch.Tensor]:
    """The images of all groups of a batch.

    Args:
        images: uint8 (N, H, W, 3), of the whole dataset, padded.
        rows: int64 (B,), which of them.
        draws: of each group {field of FIELDS: (count, B, ...)}, with CutMix's "box" and "partner".
        shapes: of each group (size of a crop, radius of the largest blur), see `render`.
    """
    chosen = images[rows]
    return [
        render(chosen, {key: drawn[key] for key in FIELDS}, drawn["box"], drawn["partner"], size, radius)
        for drawn, (size, radius) in zip(draws, shapes)
    ]
