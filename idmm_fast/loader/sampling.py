"""What is sampled for one crop of one image: its box, and its augmentations (see `augment`)."""

import math
from typing import Any

import numpy as np

from ..kernels.jit import kernel
from ..kernels.philox import uniforms
from .augment import SAMPLED, sample_augment

# One crop of one image. The box is in pixels of the source.
CROP_SAMPLE = np.dtype([("top", "i4"), ("left", "i4"), ("height", "i4"), ("width", "i4"), *SAMPLED], align=True)


@kernel
def sample_crop_box(
    seed: int, epoch: int, row: int, stream: int, height: int, width: int, scale: np.ndarray, ratio: np.ndarray
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params, from blocks 0..9 of the counter.

    Args:
        seed: uint64.
        epoch: counter.
        row: of the dataset.
        stream: number of the crop among those of an image.
        height: of the image, pixels.
        width: of the image, pixels.
        scale: float64 (2,), range of the crop's area as a fraction of the image's.
        ratio: float64 (2,), range of width over height.

    Returns:
        (top, left, height, width) of the crop, pixels of the image.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(10):
        u = uniforms(seed, row, epoch, stream, attempt)
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
        aspect = math.exp(low + (high - low) * u[1])
        w = int(np.rint(math.sqrt(area * aspect)))
        h = int(np.rint(math.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(int(np.rint(width / ratio[0])), height)
    elif width / height > ratio[1]:
        w = min(int(np.rint(height * ratio[1])), width)
    return (height - h) // 2, (width - w) // 2, h, w


@kernel
def sample_crop(seed: int, epoch: int, row: int, stream: int, height: int, width: int, spec: Any, sample: Any) -> None:
    """Fill `sample` (CROP_SAMPLE record) for crop number `stream` of an image of this size; spec: CROP_SPEC record."""
    if spec.resize > 0:
        sample.top, sample.left, sample.height, sample.width = 0, 0, height, width
    else:
        top, left, h, w = sample_crop_box(seed, epoch, row, stream, height, width, spec.scale, spec.ratio)
        sample.top, sample.left, sample.height, sample.width = top, left, h, w
    sample_augment(seed, epoch, row, stream, spec, sample)


@kernel
def sample_crops(
    seed: int,
    epoch: int,
    rows: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    specs: np.ndarray,
    samples: np.ndarray,
) -> None:
    """Sample all crops of some images.

    Args:
        seed: uint64.
        epoch: counter.
        rows: int64 (B,), of the dataset.
        heights: int64 (B,), pixels.
        widths: int64 (B,), pixels.
        specs: CROP_SPEC (crops,).
        samples: CROP_SAMPLE (crops, B), filled.
    """
    for v in range(specs.size):
        for b in range(rows.size):
            sample_crop(seed, epoch, rows[b], v, heights[b], widths[b], specs[v], samples[v, b])
