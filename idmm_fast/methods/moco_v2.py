"""MoCo v2: one crop against the key of the other and a queue of older keys, which a momentum encoder makes.

He et al., arXiv 1911.05722 (equation 1 and algorithm 1); Chen et al., arXiv 2003.04297.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ..models import feature_dim
from ..models.projector import mlp
from ..runtime.gather import gather_rows
from .base import Method, Tensors, ema_update, momentum_copy


class MoCoV2(Method):
    """The first crop is the query, the second one the key.

    On ImageNet a query hardly ever meets an older key of its own image in the queue. Among few images it would do so
    all the time, so such keys are no negatives here.

    Args:
        backbone: gives features (n, d).
        images: number of training images; the queue is not longer.
        temperature: of the softmax.
        hidden: width of the projection's first layer.
        dim: length of the projection.
        queue: number of keys in the queue.
        momentum: of the momentum encoder.
    """

    required_crops = (2,)
    queue: torch.Tensor
    queue_ids: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        images: int,
        temperature: float = 0.2,
        hidden: int = 2048,
        dim: int = 128,
        queue: int = 65536,
        momentum: float = 0.999,
    ) -> None:
        super().__init__(backbone)
        self.temperature, self.momentum = temperature, momentum
        self.head = mlp([feature_dim(backbone), hidden, dim])
        self.momentum_encoder = momentum_copy([self.backbone, self.head])
        self.register_buffer("queue", normalize(torch.randn(min(queue, images), dim), dim=1))
        self.register_buffer("queue_ids", torch.full((self.queue.shape[0],), -1))  # the images' numbers; -1: of none
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))  # the oldest key

    def forward(
        self, images: Tensors, idx_a: Tensors, idx_b: Tensors, lam: Tensors, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """See Method; one group of two crops."""
        (both,) = images
        query_images, key_images = both.chunk(2)
        ids = idx_a[0][: query_images.shape[0]]
        q = normalize(self.project([self.backbone, self.head], [query_images]).float(), dim=1)
        with torch.no_grad():
            k = normalize(self.project(self.momentum_encoder, [key_images]).float(), dim=1)
        with torch.autocast(q.device.type, enabled=False):
            negatives = (q @ self.queue.T).masked_fill(ids.unsqueeze(1) == self.queue_ids, -torch.inf)
            logits = torch.cat([(q * k).sum(1, keepdim=True), negatives], dim=1) / self.temperature
        loss = cross_entropy(logits, torch.zeros(q.shape[0], dtype=torch.int64, device=q.device))
        self._pending_keys = k, ids  # for after_step: the backward pass still needs the queue as it is
        return loss_weight * loss

    @torch.no_grad()
    def _enqueue(self, keys: torch.Tensor, ids: torch.Tensor) -> None:
        """Replace the oldest keys by these; not if one of them is not finite."""
        size = self.queue.shape[0]
        keys, ids = keys[-size:], ids[-size:]
        places = (self.queue_ptr + torch.arange(keys.shape[0], device=keys.device)) % size
        finite = torch.isfinite(keys).all()
        self.queue.index_copy_(0, places, torch.where(finite, keys, self.queue[places]))
        self.queue_ids.index_copy_(0, places, torch.where(finite, ids, self.queue_ids[places]))
        self.queue_ptr.copy_((self.queue_ptr + keys.shape[0]) % size)

    def after_step(self, progress: float) -> None:
        self._enqueue(*(gather_rows(pending)[0] for pending in self._pending_keys))
        ema_update(self.momentum_encoder, [self.backbone, self.head], self.momentum)
