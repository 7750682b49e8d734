"""What crops are asked for, and what a batch of them holds; with the table of them that kernels read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from ..config.augment import Augment

__all__ = ["CROP_SPEC", "IDMM_VIEWS", "Augment", "CutMixSpec", "Group", "Views", "crop_table"]


@dataclass(frozen=True)
class Views:
    """A multi-crop group: `count` random crops of every image.

    Attributes:
        count: of crops, at least 1.
        size: side of a crop, pixels, at least 8.
        scale: range of the crop's area as a fraction of the image's, within 0..1 (torchvision's RandomResizedCrop).
        ratio: range of the crop's width over its height.
        interpolation: "bilinear" or "bicubic", both antialiased as in PIL.
        resize: if not 0, no random crop but the one of evaluation: the shorter side becomes `resize` pixels, then the
            centre is cut out.

    Raises:
        ValueError: a value is out of its bounds.
    """

    count: int
    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    resize: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8:
            raise ValueError(
                f"Views needs a count of at least 1 and a size of at least 8, not {self.count} and {self.size}"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"Views.scale is a range of fractions of the image's area within 0..1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"Views.ratio is a range of width over height, not {self.ratio}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"Views.interpolation is 'bilinear' or 'bicubic', not '{self.interpolation}'")
        if self.resize and self.resize < self.size:
            raise ValueError(f"Views.resize {self.resize} is smaller than the size {self.size} that is cut out of it")


IDMM_VIEWS = (Views(2, 112, (0.14, 1.0)), Views(4, 112, (0.05, 0.4)))  # two global crops and four local ones


@dataclass(frozen=True)
class Group:
    """The crops of one multi-crop group, of a batch of B images.

    Rows are crop-major: crop 0 of all images, then crop 1, ...

    Attributes:
        images: uint8 (count * B, 3, H, W), channels-last in memory.
        idx_a: int64 (count * B,), the dataset row whose pixels are outside the CutMix box.
        idx_b: int64 (count * B,), the dataset row whose pixels are inside it.
        lam: float32 (count * B,), the fraction of the pixels that are idx_a's.
    """

    images: torch.Tensor
    idx_a: torch.Tensor
    idx_b: torch.Tensor
    lam: torch.Tensor


@dataclass(frozen=True)
class CutMixSpec:
    """How crops are mixed. See cutmix.sample_cutmix.

    Attributes:
        alpha: of the Beta distribution of lam; 0: no mixing. Or a function of the epoch.
        chunk: so many neighbouring images mix among themselves; 0: the whole batch.
        per_row: a box for each row, instead of one for all.

    Raises:
        ValueError: a value is out of its bounds.
    """

    alpha: float | Callable[[int], float] = 0.5
    chunk: int = 0
    per_row: bool = False

    def __post_init__(self) -> None:
        if not callable(self.alpha):
            self.alpha_of(0)
        if self.chunk < 0:
            raise ValueError(f"cutmix_chunk is at least 0 (0: the whole batch), not {self.chunk}")

    def alpha_of(self, epoch: int) -> float:
        """`alpha` of an epoch.

        Raises:
            ValueError: it is below 0, or not finite.
        """
        alpha = self.alpha(epoch) if callable(self.alpha) else self.alpha
        if not 0 <= alpha < math.inf:
            raise ValueError(f"cutmix_alpha is 0 (no CutMix) or a number above it, not {alpha}")
        return alpha


def _field(name: str, default: Any) -> tuple:
    """A field of CROP_SPEC for a field of Augment, from its default."""
    if isinstance(default, tuple):
        return name, "f8", len(default)
    return name, "i4" if isinstance(default, int) else "f8"


# One record a crop of an image: what it is sampled from. The fields from "scale" on are those of Views and of Augment.
CROP_SPEC = np.dtype(
    [
        ("group", "i4"),
        ("slot", "i4"),  # number of the crop in its group, where its pixels are written
        ("stream", "i4"),  # number of the crop among those of an image, of its counter
        ("ahead", "i4"),  # of its counter too: epochs after that of the batch
        ("size", "i4"),
        ("bicubic", "i4"),
        ("resize", "i4"),
        ("scale", "f8", 2),
        ("ratio", "f8", 2),
        *(_field(f.name, f.default) for f in fields(Augment)),
    ],
    align=True,
)


def crop_table(views: Sequence[Views], augment: Augment, epochs: int = 1) -> np.ndarray:
    """CROP_SPEC records, one for each crop of an image in `epochs` epochs, in the order of groups and epochs."""
    table = np.zeros(epochs * sum(v.count for v in views), CROP_SPEC)
    record, stream = iter(table), 0
    for group, spec in enumerate(views):
        for slot in range(epochs * spec.count):
            r = next(record)
            r["group"], r["slot"], r["size"], r["resize"] = group, slot, spec.size, spec.resize
            r["ahead"], r["stream"] = slot // spec.count, stream + slot % spec.count
            r["bicubic"] = spec.interpolation == "bicubic"
            r["scale"], r["ratio"] = spec.scale, spec.ratio
            for f in fields(Augment):
                r[f.name] = getattr(augment, f.name)
        stream += spec.count
    return table
