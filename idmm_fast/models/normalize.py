"""Normalisation of images, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as timm has it
STD = (0.229, 0.224, 0.225)
PRETRAIN_STD = (0.228, 0.224, 0.225)  # of IDMM's released pretraining; its fine-tuning has the usual 0.229


class Normalize(nn.Module):
    """uint8 (B, 3, H, W), levels 0..255, to float: (x / 255 - mean) / std, per channel, on whatever device x is on.

    Args:
        pretraining: whether the standard deviation is that of pretraining, which features are extracted with too. A
            fine-tuning has ImageNet's, also where its backbone is frozen (model.freeze).
        mean: of each channel, 0..1; None: ImageNet's. Set where the first weights were made with another one.
        std: of each channel, above 0; None: as `pretraining` says.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self, pretraining: bool = False, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        means = torch.tensor(mean or MEAN).view(1, 3, 1, 1)
        stds = torch.tensor(std or (PRETRAIN_STD if pretraining else STD)).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * stds), persistent=False)
        self.register_buffer("shift", -means / stds, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images, of the type and shape that the class says."""
        return images.to(self.scale.dtype) * self.scale + self.shift
