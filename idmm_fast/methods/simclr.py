"""SimCLR: two views of an image are alike, and unlike all others of the batch (Chen et al., arXiv 2002.05709)."""

import torch
from torch.nn.functional import normalize

from ..losses import contrastive_loss
from ..losses.gather import gather_rows
from ..models import feature_dim
from ..models.projector import mlp
from .base import Method


class SimCLR(Method):
    """NT-Xent on a projection of two layers. Positives are the views of the same image, however many there are; negatives those of all
    processes. The temperature is the one of the paper's experiments with small images (appendix B.9)."""

    def __init__(self, backbone, temperature=0.5, hidden=2048, dim=128):
        super().__init__(backbone)
        self.temperature = temperature
        self.head = mlp([feature_dim(backbone), hidden, dim])

    def alike(self, idx):
        """Ids that are equal where two images are to be alike. idx: int64, the images' numbers."""
        return idx

    def forward(self, images, idx_a, idx_b, lam, share=1.0):
        """See Method."""
        z = normalize(self.embed([self.backbone, self.head], images).float(), dim=1)
        ids = self.alike(torch.cat(idx_a))
        keys, first = gather_rows(z)
        own = torch.arange(z.shape[0], device=z.device) + first
        return share * contrastive_loss(z, keys, ids, gather_rows(ids)[0], self.temperature, own)
