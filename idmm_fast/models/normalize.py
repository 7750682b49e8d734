"""Normalisation of images, on the device."""

from __future__ import annotations

import torch
from torch import nn

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as timm has it
STD = (0.229, 0.224, 0.225)
PRETRAIN_STD = (0.228, 0.224, 0.225)  # of IDMM's released pretraining; its fine-tuning has the usual 0.229


class Normalize(nn.Module):
    """uint8 (B, 3, H, W), levels 0..255, to float: (x / 255 - mean) / std, per channel, on whatever device x is on.

    Args:
        pretraining: whether the standard deviation is that of pretraining, whose backbones need it when frozen too.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, pretraining: bool = False) -> None:
        super().__init__()
        mean = torch.tensor(MEAN).view(1, 3, 1, 1)
        std = torch.tensor(PRETRAIN_STD if pretraining else STD).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images, of the type and shape that the class says."""
        return images.to(self.scale.dtype) * self.scale + self.shift
