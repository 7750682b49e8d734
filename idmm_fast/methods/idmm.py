"""IDMM: every image its own class, multi-crop, CutMix, label smoothing (Cao, Yu and Wu, arXiv 2201.10728)."""

import torch
from torch import nn

from ..losses import ShardedHead, instance_loss
from ..losses.fused import MEMORY
from ..models import Normalize, feature_dim, init_head
from ..models.backbone import PRETRAIN_STD


class IDMM(nn.Module):
    """A backbone, and a linear layer that tells `instances` images apart. With `fused` their logits are never held as a whole,
    `memory` bounds the scratch in bytes, and each of several processes holds a slice of the layer. sample_rate below 1: only this share of the
    images that are not in the batch takes part in a step, see ShardedHead."""

    def __init__(self, backbone, instances, smoothing=0.1, fused=False, memory=MEMORY, sample_rate=1.0):
        super().__init__()
        self.normalize = Normalize(std=PRETRAIN_STD)
        self.backbone = backbone
        self.smoothing, self.fused = smoothing, fused or sample_rate < 1
        if self.fused:
            self.head = ShardedHead(feature_dim(backbone), instances, None, sample_rate, memory)
        else:
            self.head = init_head(feature_dim(backbone), instances)
        if self.fused and self.head.spread:  # DistributedDataParallel must leave alone what is different everywhere
            self._ddp_params_and_buffers_to_ignore = ["head.weight", "head.bias"]

    def forward(self, images, idx_a, idx_b, lam, share=1.0):
        """The loss: the sum over the groups of views of the mean over a group's rows.

        Each argument has an entry a group: images uint8 (n, 3, H, W), idx_a and idx_b int64 (n,), lam float32 (n,).
        Groups of one size go through the network together. share: what these rows weigh among those of all processes (see
        MultiCropLoader.share_of); the loss is then the average of the processes' values.
        """
        loss = 0.0
        for size in dict.fromkeys(x.shape[-1] for x in images):
            members = [g for g, x in enumerate(images) if x.shape[-1] == size]
            x = torch.cat([images[g] for g in members]) if len(members) > 1 else images[members[0]]
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
