"""What is drawn for one view of one image: the crop, the flip, the colours, the blur.

Every value has a counter of its own (see `philox`), so switching one augmentation off leaves all others as they were.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..kernels.jit import kernel
from ..kernels.philox import uniforms
from ..kernels.randaugment import sample_operation

# One drawn view. Lengths in source pixels, factors as torchvision's functional API takes them, sigma in output pixels; the last four: see
# randaugment.draw_operation.
DRAW = np.dtype(
    [
        ("top", "i4"),
        ("left", "i4"),
        ("height", "i4"),
        ("width", "i4"),
        ("flip", "i4"),
        ("jitter", "i4"),
        ("order", "i4", 4),
        ("brightness", "f4"),
        ("contrast", "f4"),
        ("saturation", "f4"),
        ("hue", "f4"),
        ("gray", "i4"),
        ("sigma", "f4"),
        ("operation", "i4", 2),
        ("argument", "f8", 2),
        ("cut_x", "f8", 2),
        ("cut_y", "f8", 2),
    ],
    align=True,
)

# What a view is drawn from: one record a view, in the order of the views.
CROP_SPEC = np.dtype(
    [
        ("group", "i4"),
        ("place", "i4"),
        ("size", "i4"),
        ("bicubic", "i4"),
        ("resize", "i4"),
        ("scale", "f8", 2),
        ("ratio", "f8", 2),
        ("flip_prob", "f8"),
        ("jitter_prob", "f8"),
        ("brightness", "f8"),
        ("contrast", "f8"),
        ("saturation", "f8"),
        ("hue", "f8"),
        ("grayscale_prob", "f8"),
        ("blur_prob", "f8"),
        ("sigma", "f8", 2),
        ("randaugment", "i4"),
    ],
    align=True,
)

# Blocks of the counter: 0..9 are the attempts at a crop.
_SWITCHES, _FACTORS, _SHAPES = 16, 17, 18


@dataclass(frozen=True)
class Augment:
    """The augmentations of a view, in the order in which they happen; each is off at 0.

    flip_prob: probability of a horizontal flip. jitter_prob: probability that the four colour operations run, in a random order,
    with factors uniform in [max(0, 1 - x), 1 + x] for brightness, contrast and saturation and a shift uniform in
    [-hue, hue] turns. grayscale_prob: probability of grayscale. blur_prob: probability of a Gaussian blur whose sigma, in output
    pixels, is uniform in `sigma`. randaugment: how many operations of RandAugment follow, 0 to 2, the authors' fifteen (see
    randaugment). Defaults: the pretraining recipe of IDMM (arXiv 2201.10728).
    """

    flip_prob: float = 0.5
    jitter_prob: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grayscale_prob: float = 0.2
    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    randaugment: int = 0

    def __post_init__(self):
        for name in ("flip_prob", "jitter_prob", "grayscale_prob", "blur_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Augment.{name} is a probability: {getattr(self, name)} is not in 0..1")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"Augment.{name} can't be negative: {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"Augment.hue is in turns, 0..0.5: {self.hue}")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1] <= 8:
            raise ValueError(f"Augment.blur_sigma is a range of pixels within 0..8: {self.blur_sigma}")
        if self.randaugment not in (0, 1, 2):
            raise ValueError(f"Augment.randaugment is 0, 1 or 2: {self.randaugment}")

    @classmethod
    def none(cls):
        """No augmentation but the crop."""
        return cls(flip_prob=0, jitter_prob=0, grayscale_prob=0, blur_prob=0)


@kernel
def sample_crop_box(seed, epoch, row, stream, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params: (top, left, height, width) of the crop in source pixels."""
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
def sample_crop(seed, epoch, row, stream, height, width, view, draw):
    """Fill the record `draw` (DRAW) for view number `stream` (its specification `view`, VIEW) of one image."""
    if view.resize > 0:
        draw.top, draw.left, draw.height, draw.width = 0, 0, height, width
    else:
        top, left, h, w = sample_crop_box(seed, epoch, row, stream, height, width, view.scale, view.ratio)
        draw.top, draw.left, draw.height, draw.width = top, left, h, w
    u = uniforms(seed, row, epoch, stream, _SWITCHES)
    draw.flip = u[0] < view.flip_prob
    draw.jitter = u[1] < view.jitter_prob
    draw.gray = u[2] < view.grayscale_prob
    blurred = u[3] < view.blur_prob
    u = uniforms(seed, row, epoch, stream, _FACTORS)
    draw.brightness = max(0.0, 1.0 - view.brightness) * (1.0 - u[0]) + (1.0 + view.brightness) * u[0]
    draw.contrast = max(0.0, 1.0 - view.contrast) * (1.0 - u[1]) + (1.0 + view.contrast) * u[1]
    draw.saturation = max(0.0, 1.0 - view.saturation) * (1.0 - u[2]) + (1.0 + view.saturation) * u[2]
    draw.hue = view.hue * (2.0 * u[3] - 1.0)
    u = uniforms(seed, row, epoch, stream, _SHAPES)
    draw.sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * u[0] if blurred else 0.0
    for k in range(2):
        which, argument, x, y = -1, 0.0, 0.0, 0.0
        if k < view.randaugment:
            which, argument, x, y = sample_operation(seed, epoch, row, stream, k, draw.flip)
        draw.operation[k], draw.argument[k], draw.cut_x[k], draw.cut_y[k] = which, argument, x, y
    # One of the 24 orders, by its number in the factorial base.
    number = min(int(u[1] * 24), 23)
    left_over = np.arange(4)  # color.BRIGHTNESS .. color.HUE
    for k in range(4):
        base = (6, 2, 1, 1)[k]
        pick = number // base
        number -= pick * base
        draw.order[k] = left_over[pick]
        for m in range(pick, 3 - k):
            left_over[m] = left_over[m + 1]


@kernel
def sample_crops(seed, epoch, rows, heights, widths, views, result):
    """Fill `result` (DRAW, (views, B)) for every one of `views` (VIEW) of the images `rows` (int64 (B,)) of these sizes."""
    for v in range(views.size):
        for b in range(rows.size):
            sample_crop(seed, epoch, rows[b], v, heights[b], widths[b], views[v], result[v, b])
