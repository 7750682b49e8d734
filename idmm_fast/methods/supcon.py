"""SupCon: the crops of all images of a class attract each other; it uses labels (Khosla et al., arXiv 2004.11362)."""

from __future__ import annotations

import torch
from torch import nn

from .simclr import SimCLR


class SupCon(SimCLR):
    """The paper's L_out (equation 2) on a projection of two layers.

    Temperature and length of the projection are those of IDMM's comparison (arXiv 2201.10728).

    Args:
        backbone: gives features (n, d).
        labels: int64 (images,).
        temperature: of the softmax.
        hidden: width of the projection's first layer.
        dim: length of the projection.
    """

    needs_labels = True
    labels: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        labels: torch.Tensor,
        temperature: float = 0.5,
        hidden: int = 2048,
        dim: int = 256,
    ) -> None:
        super().__init__(backbone, temperature, hidden, dim)
        self.register_buffer("labels", labels, persistent=False)

    def positive_ids(self, idx: torch.Tensor) -> torch.Tensor:
        return self.labels[idx]
