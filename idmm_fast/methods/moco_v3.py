"""MoCo v3: each crop predicts the key of the other among the keys of the batch, which a momentum encoder makes.

Chen, Xie and He, arXiv 2104.02057 (equation 1 and algorithm 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from ..losses import contrastive_loss
from ..models import feature_dim
from ..models.projector import mlp
from ..runtime.gather import gather_rows
from .base import Method, Tensors, cosine_momentum, ema_update, momentum_copy


class MoCoV3(Method):
    """Projection of three layers and prediction of two, with batch normalisation.

    The patch embedding keeps its random weights, which the paper found to steady ViTs (section 4).

    Args:
        backbone: gives features (n, d).
        temperature: of the softmax.
        hidden: width of the inner layers.
        dim: length of the projection.
        momentum: of the momentum encoder; it rises from this to 1 along half a cosine.
    """

    required_crops = (2,)

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.2,
        hidden: int = 4096,
        dim: int = 256,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(backbone)
        self.temperature, self.momentum = temperature, momentum
        projector = mlp([feature_dim(backbone), hidden, hidden, dim], batch_norm=True)
        self.head = nn.ModuleDict({"projector": projector, "predictor": mlp([dim, hidden, dim], batch_norm=True)})
        if hasattr(backbone, "patch_embed"):
            backbone.patch_embed.requires_grad_(False)
        self.momentum_encoder = momentum_copy([self.backbone, projector])

    def forward(
        self, images: Tensors, idx_a: Tensors, idx_b: Tensors, lam: Tensors, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """See Method; one group of two crops."""
        networks = [self.backbone, self.head["projector"], self.head["predictor"]]
        q = normalize(self.project(networks, images).float(), dim=1)
        with torch.no_grad():
            k = normalize(self.project(self.momentum_encoder, images).float(), dim=1)
        ids = idx_a[0].chunk(2)[0]
        all_ids = gather_rows(ids)[0]
        loss: Any = 0.0  # a tensor from the first pair on
        for query, key in zip(q.chunk(2), reversed(k.chunk(2))):
            loss = loss + contrastive_loss(query, gather_rows(key)[0], ids, all_ids, self.temperature)
        return loss_weight * 2 * self.temperature * loss

    def after_step(self, progress: float) -> None:
        networks = [self.backbone, self.head["projector"]]
        ema_update(self.momentum_encoder, networks, cosine_momentum(self.momentum, progress))
