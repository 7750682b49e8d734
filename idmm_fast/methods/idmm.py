"""IDMM: every image its own class, multi-crop, CutMix, label smoothing (Cao, Yu and Wu, arXiv 2201.10728)."""

import torch

from ..losses import ShardedHead, instance_loss
from ..losses.fused import MEMORY
from ..models import feature_dim, init_head
from .base import Method, by_size


class IDMM(Method):
    """A backbone, and a linear layer that tells `instances` images apart. With `fused` their logits are never held as a whole,
    `memory` bounds the scratch in bytes, and each of several processes holds a slice of the layer. sample_rate below 1: only this share of the
    images that are not in the batch takes part in a step, see ShardedHead."""

    uses_mixed_images = True

    def __init__(self, backbone, instances, smoothing=0.1, fused=False, memory=MEMORY, sample_rate=1.0):
        super().__init__(backbone)
        self.smoothing, self.fused = smoothing, fused or sample_rate < 1
        if self.fused:
            self.head = ShardedHead(feature_dim(backbone), instances, None, sample_rate, memory)
        else:
            self.head = init_head(feature_dim(backbone), instances)
        if self.fused and self.head.is_sharded:  # DistributedDataParallel must leave alone what is different everywhere
            self._ddp_params_and_buffers_to_ignore = ["head.weight", "head.bias"]

    def forward(self, images, idx_a, idx_b, lam, share=1.0):
        """The sum over the groups of views of the mean over a group's rows; see Method."""
        loss = 0.0
        for members, x in by_size(images):
            features = self.backbone(self.normalize(x))
            if self.fused:
                a, b, kept = (torch.cat([v[g] for g in members]) for v in (idx_a, idx_b, lam))
                weights = torch.cat([torch.full_like(lam[g], share / images[g].shape[0]) for g in members])
                loss = loss + self.head.loss(features, a, b, kept, self.smoothing, averaged=True, row_weight=weights)
                continue
            logits = self.head(features)
            first = 0
            for g in members:
                rows = logits[first : first + images[g].shape[0]]
                loss = loss + share * instance_loss(rows, idx_a[g], idx_b[g], lam[g], self.smoothing)
                first += images[g].shape[0]
        return loss
