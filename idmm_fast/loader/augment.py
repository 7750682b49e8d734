"""The augmentations of a crop: what is sampled for them, and how they change its pixels.

A new augmentation is a field of config.augment.Augment, a kernel in idmm_fast/kernels, and here its values in SAMPLED,
a line of `sample_augment` and one of `apply_augment`.

Every value has a counter of its own (see `philox`), so switching one augmentation off leaves all others as they were.
"""

from typing import Any

import numpy as np

from ..kernels.blur import gaussian_blur
from ..kernels.color import PROGRAM, adjust_saturation, jitter
from ..kernels.jit import kernel
from ..kernels.philox import uniforms
from ..kernels.randaugment import apply_operation, sample_operation

# What is sampled for a crop: fields of sampling.CROP_SAMPLE. Factors are those of torchvision's functional API.
SAMPLED = [
    ("flip", "i4"),
    ("jitter", "i4"),
    ("order", "i4", 4),  # of the colour operations
    ("brightness", "f4"),
    ("contrast", "f4"),
    ("saturation", "f4"),
    ("hue", "f4"),
    ("gray", "i4"),
    ("sigma", "f4"),  # of the blur, pixels of the crop; 0: no blur
    ("operation", "i4", 2),  # RandAugment's, see randaugment.sample_operation
    ("argument", "f8", 2),
    ("cut_x", "f8", 2),
    ("cut_y", "f8", 2),
]

# Blocks of the counter. Taken: 0..9 by the attempts at a crop's box (`sampling`), 24..27 by RandAugment.
_SWITCHES, _FACTORS, _SHAPES = 16, 17, 18


@kernel
def sample_augment(seed: int, epoch: int, row: int, stream: int, spec: Any, sample: Any) -> None:
    """Sample the augmentations of one crop.

    Args:
        seed: uint64.
        epoch: counter.
        row: of the dataset.
        stream: number of the crop among those of an image.
        spec: CROP_SPEC record.
        sample: CROP_SAMPLE record, whose fields of SAMPLED are filled.
    """
    u = uniforms(seed, row, epoch, stream, _SWITCHES)
    sample.flip = u[0] < spec.flip_prob
    sample.jitter = u[1] < spec.jitter_prob
    sample.gray = u[2] < spec.grayscale_prob
    blurred = u[3] < spec.blur_prob
    u = uniforms(seed, row, epoch, stream, _FACTORS)
    sample.brightness = max(0.0, 1.0 - spec.brightness) * (1.0 - u[0]) + (1.0 + spec.brightness) * u[0]
    sample.contrast = max(0.0, 1.0 - spec.contrast) * (1.0 - u[1]) + (1.0 + spec.contrast) * u[1]
    sample.saturation = max(0.0, 1.0 - spec.saturation) * (1.0 - u[2]) + (1.0 + spec.saturation) * u[2]
    sample.hue = spec.hue * (2.0 * u[3] - 1.0)
    u = uniforms(seed, row, epoch, stream, _SHAPES)
    sample.sigma = spec.blur_sigma[0] + (spec.blur_sigma[1] - spec.blur_sigma[0]) * u[0] if blurred else 0.0
    for k in range(2):
        operation, argument, x, y = -1, 0.0, 0.0, 0.0
        if k < spec.randaugment:
            operation, argument, x, y = sample_operation(seed, epoch, row, stream, k, sample.flip)
        sample.operation[k], sample.argument[k], sample.cut_x[k], sample.cut_y[k] = operation, argument, x, y
    # One of the 24 orders, by its number in the factorial base.
    number = min(int(u[1] * 24), 23)
    left_over = np.arange(4)  # color.BRIGHTNESS .. color.HUE
    for k in range(4):
        base = (6, 2, 1, 1)[k]
        pick = number // base
        number -= pick * base
        sample.order[k] = left_over[pick]
        for m in range(pick, 3 - k):
            left_over[m] = left_over[m + 1]


@kernel
def recolor_crop(sample: Any, planes: np.ndarray, scratch: np.ndarray) -> None:
    """The colour jitter and the grayscale that were sampled, in place."""
    program = scratch[:PROGRAM]
    if sample.jitter:
        jitter(
            planes,
            sample.order,
            sample.brightness,
            sample.contrast,
            sample.saturation,
            sample.hue,
            sample.gray,
            program,
        )
    elif sample.gray:
        adjust_saturation(planes, 0.0, program)


@kernel
def apply_augment(sample: Any, planes: np.ndarray, scratch: np.ndarray) -> None:
    """The augmentations that were sampled, in place; but for the flip, which comes with the resampling.

    Args:
        sample: CROP_SAMPLE record.
        planes: float32 (3, S, S), levels 0..255.
        scratch: float32, as many as render.Scratch has.
    """
    recolor_crop(sample, planes, scratch)
    if sample.sigma > 0:
        gaussian_blur(planes, sample.sigma, scratch)
    for k in range(2):
        if sample.operation[k] >= 0:
            operation, argument, x, y = sample.operation[k], sample.argument[k], sample.cut_x[k], sample.cut_y[k]
            apply_operation(planes, operation, argument, x, y, sample.flip, scratch)
