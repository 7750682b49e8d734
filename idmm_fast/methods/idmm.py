"""IDMM: every image its own class, multi-crop, CutMix, label smoothing (Cao, Yu and Wu, arXiv 2201.10728).

With one crop, and neither CutMix nor label smoothing, it is parametric instance discrimination: the classification of
instances of Dosovitskiy et al. (arXiv 1406.6909) and Wu et al. (arXiv 1805.01978), by a linear layer instead of Wu's
memory bank. The layer gets the exact gradient of all classes, (p_j - y_j) z for class j, towards which Cao and Wu
(arXiv 2404.19289) correct the update of the memory bank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, normalize

from ..losses import ShardedHead, instance_loss, sqrt_kl_loss
from ..losses.fused_step import WORKSPACE_BYTES
from ..models import feature_dim, init_head
from .base import Method, Tensors, by_size


@dataclass(frozen=True)
class DenseLoss:
    """What a loss may have besides, that needs all logits of a step; off by default.

    Args:
        temperature: T of logits cos(z, w_c) / T without bias, as of Wu et al.'s memory bank; 0: z W^T + b.
        sqrt_kl: weight of `losses.sqrt_kl_loss`, of the cosines where there is a temperature (as its authors have it),
            else of the logits; 0: without.
    """

    temperature: float = 0.0
    sqrt_kl: float = 0.0


class IDMM(Method):
    """A backbone, and a linear layer that tells images apart; the loss is losses.instance_loss.

    Args:
        backbone: gives features (n, d).
        instances: number of images.
        label_smoothing: eps of the loss.
        fused: whether head and loss are one: the logits are then never held as a whole, and each of several processes
            holds a slice of the layer. See losses/fused.py.
        workspace_bytes: memory of the fused loss, beyond weights and gradients.
        sample_rate: below 1, a step works on this fraction of the images outside the batch; see losses.ShardedHead.
            The loss is then fused.
        dense: further parts of the loss where it is not fused.
    """

    uses_mixed_images = True

    def __init__(
        self,
        backbone: nn.Module,
        instances: int,
        label_smoothing: float = 0.1,
        fused: bool = False,
        workspace_bytes: int = WORKSPACE_BYTES,
        sample_rate: float = 1.0,
        dense: DenseLoss = DenseLoss(),
    ) -> None:
        super().__init__(backbone)
        self.dense = dense
        self.label_smoothing, self.fused = label_smoothing, fused or sample_rate < 1
        if self.fused:
            self.head = ShardedHead(feature_dim(backbone), instances, None, sample_rate, workspace_bytes)
        else:
            self.head = init_head(feature_dim(backbone), instances)
            if dense.temperature:
                self.head.register_parameter("bias", None)
        if self.fused and self.head.is_sharded:  # DistributedDataParallel must leave alone what is different everywhere
            self._ddp_params_and_buffers_to_ignore = ["head.weight", "head.bias"]

    def forward(
        self, images: Tensors, idx_a: Tensors, idx_b: Tensors, lam: Tensors, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """The sum over the crop groups of the mean over a group's rows; see Method."""
        loss: Any = 0.0  # a tensor from the first group on
        for members, x in by_size(images):
            features = self.backbone(self.normalize(x))
            if self.fused:
                a, b, lams = (torch.cat([v[g] for g in members]) for v in (idx_a, idx_b, lam))
                row_weight = torch.cat([torch.full_like(lam[g], loss_weight / images[g].shape[0]) for g in members])
                loss = loss + self.head.loss(features, a, b, lams, self.label_smoothing, True, row_weight)
                continue
            logits = self._dense_logits(features)
            first = 0
            for g in members:
                rows = logits[first : first + images[g].shape[0]]
                scaled = rows / self.dense.temperature if self.dense.temperature else rows
                loss = loss + loss_weight * instance_loss(scaled, idx_a[g], idx_b[g], lam[g], self.label_smoothing)
                if self.dense.sqrt_kl:
                    loss = loss + loss_weight * self.dense.sqrt_kl * sqrt_kl_loss(rows)
                first += images[g].shape[0]
        return loss

    def _dense_logits(self, features: torch.Tensor) -> torch.Tensor:
        """(n, instances) of features (n, d): cosines where there is a temperature, which is not applied yet."""
        if self.dense.temperature:
            return linear(normalize(features), normalize(self.head.weight))
        return self.head(features)
