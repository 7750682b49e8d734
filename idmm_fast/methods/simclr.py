"""SimCLR: crops of an image attract each other and repel all others of the batch (Chen et al., arXiv 2002.05709)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from ..losses import contrastive_loss
from ..models import feature_dim
from ..models.projector import mlp
from ..runtime.gather import gather_rows
from .base import Method, Tensors


class SimCLR(Method):
    """NT-Xent (the paper's equation 1) on a projection of two layers.

    Positives are the crops of the same image, however many there are; negatives are those of all processes.

    Args:
        backbone: gives features (n, d).
        temperature: of the softmax; the default is that of the paper's experiments with small images (appendix B.9).
        hidden: width of the projection's first layer.
        dim: length of the projection.
    """

    def __init__(self, backbone: nn.Module, temperature: float = 0.5, hidden: int = 2048, dim: int = 128) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        self.head = mlp([feature_dim(backbone), hidden, dim])

    def positive_ids(self, idx: torch.Tensor) -> torch.Tensor:
        """Ids (n,) that are equal where two images are positives of each other; idx: int64 (n,), image numbers."""
        return idx

    def forward(
        self, images: Tensors, idx_a: Tensors, idx_b: Tensors, lam: Tensors, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """See Method."""
        z = normalize(self.project([self.backbone, self.head], images).float(), dim=1)
        ids = self.positive_ids(torch.cat(list(idx_a)))
        keys, first = gather_rows(z)
        own = torch.arange(z.shape[0], device=z.device) + first
        return loss_weight * contrastive_loss(z, keys, ids, gather_rows(ids)[0], self.temperature, own)
