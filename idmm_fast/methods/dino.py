"""DINO: a student predicts, from any view, what a slowly moving copy of it says of the large ones (Caron et al., arXiv 2104.14294)."""

import torch
from torch import nn
from torch.nn.functional import linear, normalize

from ..losses import dino_loss
from ..losses.dino import moved
from ..losses.gather import sum_over_processes
from ..models import feature_dim
from ..models.projector import mlp
from .base import Method, cosine_momentum, momentum_copy, move


class DINOHead(nn.Module):
    """Three layers with GELU to `bottleneck`, scaled to length 1, then `outputs` directions of length 1 (weight normalisation with its gain held at 1)."""

    def __init__(self, d, hidden, bottleneck, outputs):
        super().__init__()
        self.mlp = mlp([d, hidden, hidden, bottleneck], nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, features):
        return linear(normalize(self.mlp(features), dim=1), normalize(self.last.weight, dim=1))


class DINO(Method):
    """The first group of views is seen by the teacher too, all others by the student alone. The teacher's outputs are centred by a moving mean and
    sharpened by their temperature. Its momentum rises from `momentum` to 1 as a cosine; the last layer rests for `frozen_epochs`. The teacher's
    backbone is what is kept, as in the authors' evaluations. views: how many each group has."""

    def __init__(
        self,
        backbone,
        views,
        hidden=2048,
        bottleneck=256,
        outputs=65536,
        student_temperature=0.1,
        teacher_temperature=0.04,
        center_momentum=0.9,
        momentum=0.996,
        frozen_epochs=1,
    ):
        super().__init__(backbone)
        self.views = views
        self.temperatures = student_temperature, teacher_temperature
        self.center_momentum, self.momentum, self.frozen_epochs = center_momentum, momentum, frozen_epochs
        self.head = DINOHead(feature_dim(backbone), hidden, bottleneck, outputs)
        self.teacher = momentum_copy([self.backbone, self.head])
        self.register_buffer("center", torch.zeros(outputs))

    @property
    def encoder(self):
        return self.teacher[0]

    def forward(self, images, idx_a, idx_b, lam, share=1.0):
        """See Method."""
        student = self.embed([self.backbone, self.head], images)
        with torch.no_grad():
            teacher = self.embed(self.teacher, images[:1]).float()
        loss = dino_loss(student, teacher, self.center, sum(self.views), self.views[0], *self.temperatures)
        self.said = (
            teacher.sum(0),
            teacher.shape[0],
        )  # for after_step: the backward pass still needs the centre as it is
        return share * loss

    def after_backward(self, epoch):
        if epoch < self.frozen_epochs:
            self.head.last.weight.grad = None

    def after_step(self, progress):
        rows, total = self.said
        total = sum_over_processes(torch.tensor(float(total), device=rows.device))
        self.center.copy_(moved(self.center, sum_over_processes(rows), total, self.center_momentum))
        move(self.teacher, [self.backbone, self.head], cosine_momentum(self.momentum, progress))
