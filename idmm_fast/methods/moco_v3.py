"""MoCo v3: each view predicts the other's key, made by a slowly moving copy, among the keys of the batch (Chen, Xie and He, arXiv 2104.02057)."""

import torch
from torch import nn
from torch.nn.functional import normalize

from ..losses import contrastive_loss
from ..losses.gather import gather_rows
from ..models import feature_dim
from ..models.projector import mlp
from .base import Method, cosine_momentum, momentum_copy, move


class MoCoV3(Method):
    """Projection of three layers and prediction of two, with batch normalisation. The patch embedding stays as it was drawn, which the paper found
    to steady ViTs. The copy's momentum rises from `momentum` to 1 as a cosine."""

    required_crops = (2,)

    def __init__(self, backbone, temperature=0.2, hidden=4096, dim=256, momentum=0.99):
        super().__init__(backbone)
        self.temperature, self.momentum = temperature, momentum
        projector = mlp([feature_dim(backbone), hidden, hidden, dim], batch_norm=True)
        self.head = nn.ModuleDict({"projector": projector, "predictor": mlp([dim, hidden, dim], batch_norm=True)})
        if hasattr(backbone, "patch_embed"):
            backbone.patch_embed.requires_grad_(False)
        self.teacher = momentum_copy([self.backbone, projector])

    def forward(self, images, idx_a, idx_b, lam, share=1.0):
        """See Method; one group of two views."""
        q = normalize(
            self.embed([self.backbone, self.head["projector"], self.head["predictor"]], images).float(), dim=1
        )
        with torch.no_grad():
            k = normalize(self.embed(self.teacher, images).float(), dim=1)
        ids = idx_a[0].chunk(2)[0]
        all_ids = gather_rows(ids)[0]
        loss = 0.0
        for asking, answering in zip(q.chunk(2), reversed(k.chunk(2))):
            loss = loss + contrastive_loss(asking, gather_rows(answering)[0], ids, all_ids, self.temperature)
        return share * 2 * self.temperature * loss

    def after_step(self, progress):
        move(self.teacher, [self.backbone, self.head["projector"]], cosine_momentum(self.momentum, progress))
