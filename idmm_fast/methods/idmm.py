"""IDMM: every image its own class, multi-crop, CutMix, label smoothing (Cao, Yu and Wu, arXiv 2201.10728)."""

import torch
from torch import nn

from ..losses import ShardedHead, fused_instance_loss, instance_loss
from ..losses.fused import MEMORY
from ..models import Normalize, feature_dim, init_head
from ..models.backbone import PRETRAIN_STD


class IDMM(nn.Module):
    """A backbone, and a linear layer that tells `instances` images apart. With `fused` their logits are never held as a whole,
    and `memory` bounds the scratch in bytes. sample_rate below 1: only this share of the images that are not in the batch takes
    part in a step, see ShardedHead."""

    def __init__(self, backbone, instances, smoothing=0.1, fused=False, memory=MEMORY, sample_rate=1.0):
        super().__init__()
        self.normalize = Normalize(std=PRETRAIN_STD)
        self.backbone = backbone
        if sample_rate < 1:
            self.head = ShardedHead(feature_dim(backbone), instances, None, sample_rate, memory, torch.initial_seed())
        else:
            self.head = init_head(feature_dim(backbone), instances)
        self.smoothing, self.fused, self.memory = smoothing, fused or sample_rate < 1, memory

    def forward(self, images, idx_a, idx_b, lam):
        """The loss: the sum over the groups of views of the mean over a group's rows.

        Each argument has an entry a group: images uint8 (n, 3, H, W), idx_a and idx_b int64 (n,), lam float32 (n,).
        Groups of one size go through the network together.
        """
        loss = 0.0
        for size in dict.fromkeys(x.shape[-1] for x in images):
            members = [g for g, x in enumerate(images) if x.shape[-1] == size]
            x = torch.cat([images[g] for g in members]) if len(members) > 1 else images[members[0]]
            features = self.backbone(self.normalize(x))
            if self.fused:
                a, b, share = (torch.cat([v[g] for g in members]) for v in (idx_a, idx_b, lam))
                means = torch.cat([torch.full_like(lam[g], 1 / images[g].shape[0]) for g in members])
                loss = loss + self._fused_loss(features, a, b, share, means)
                continue
            logits = self.head(features)
            first = 0
            for g in members:
                rows = logits[first : first + images[g].shape[0]]
                loss = loss + instance_loss(rows, idx_a[g], idx_b[g], lam[g], self.smoothing)
                first += images[g].shape[0]
        return loss

    def _fused_loss(self, features, a, b, share, row_weight):
        if isinstance(self.head, ShardedHead):
            return self.head.loss(features, a, b, share, self.smoothing, row_weight=row_weight)
        weight, bias = self.head.weight, self.head.bias
        return fused_instance_loss(features, weight, bias, a, b, share, self.smoothing, row_weight=row_weight, memory=self.memory)
