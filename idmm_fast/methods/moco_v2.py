"""MoCo v2: one view against the other's key and a queue of older keys, made by a slowly moving copy (He et al., arXiv 1911.05722; Chen et al., 2003.04297)."""

import torch
from torch.nn.functional import cross_entropy, normalize

from ..losses.gather import gather_rows
from ..models import feature_dim
from ..models.projector import mlp
from .base import Method, momentum_copy, move


class MoCoV2(Method):
    """The first view asks, the second one answers. images: how many there are; the queue is not longer than that. On ImageNet a query hardly
    ever meets an older key of its own image in the queue; among few images it would all the time, so these don't count as negatives."""

    required_crops = (2,)

    def __init__(self, backbone, images, temperature=0.2, hidden=2048, dim=128, queue=65536, momentum=0.999):
        super().__init__(backbone)
        self.temperature, self.momentum = temperature, momentum
        self.head = mlp([feature_dim(backbone), hidden, dim])
        self.teacher = momentum_copy([self.backbone, self.head])
        self.register_buffer("queue", normalize(torch.randn(min(queue, images), dim), dim=1))
        self.register_buffer("queue_ids", torch.full((self.queue.shape[0],), -1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    def forward(self, images, idx_a, idx_b, lam, share=1.0):
        """See Method; one group of two views."""
        (both,) = images
        asking, answering = both.chunk(2)
        ids = idx_a[0][: asking.shape[0]]
        q = normalize(self.embed([self.backbone, self.head], [asking]).float(), dim=1)
        with torch.no_grad():
            k = normalize(self.embed(self.teacher, [answering]).float(), dim=1)
        with torch.autocast(q.device.type, enabled=False):
            others = (q @ self.queue.T).masked_fill(ids.unsqueeze(1) == self.queue_ids, -torch.inf)
            logits = torch.cat([(q * k).sum(1, keepdim=True), others], dim=1) / self.temperature
        loss = cross_entropy(logits, torch.zeros(q.shape[0], dtype=torch.int64, device=q.device))
        self.made = k, ids  # for after_step: the backward pass still needs the queue as it is
        return share * loss

    @torch.no_grad()
    def _enqueue(self, keys, ids):
        """These keys in the place of the oldest ones; not if one of them is not finite."""
        size = self.queue.shape[0]
        keys, ids = keys[-size:], ids[-size:]
        places = (self.oldest + torch.arange(keys.shape[0], device=keys.device)) % size
        whole = torch.isfinite(keys).all()
        self.queue.index_copy_(0, places, torch.where(whole, keys, self.queue[places]))
        self.queue_ids.index_copy_(0, places, torch.where(whole, ids, self.queue_ids[places]))
        self.oldest.copy_((self.oldest + keys.shape[0]) % size)

    def after_step(self, progress):
        self._enqueue(*(gather_rows(made)[0] for made in self.made))
        move(self.teacher, [self.backbone, self.head], self.momentum)
