"""DINO: a student predicts, from any crop, the output of its own moving average, the teacher, for the global crops.

Caron et al., arXiv 2104.14294 (equations 1 to 4 and algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import linear, normalize

from ..losses import dino_loss
from ..losses.dino import update_center
from ..models import feature_dim
from ..models.projector import mlp
from ..runtime.gather import sum_over_processes
from .base import Method, Tensors, cosine_momentum, ema_update, momentum_copy


class DINOHead(nn.Module):
    """Three layers with GELU to a bottleneck of length 1, then a weight-normalised layer, its gain held at 1.

    Args:
        d: length of a feature vector.
        hidden: width of the inner layers.
        bottleneck: length of the bottleneck.
        outputs: length of the output.
    """

    def __init__(self, d: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.mlp = mlp([d, hidden, hidden, bottleneck], nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return linear(normalize(self.mlp(features), dim=1), normalize(self.last.weight, dim=1))


class DINO(Method):
    """The teacher sees the first crop group, the student all of them.

    The teacher's outputs are centred by a moving mean and sharpened by their temperature. The teacher's backbone is
    kept after pretraining, as in the authors' evaluations.

    Args:
        backbone: gives features (n, d).
        crops: how many crops each crop group has.
        hidden: width of the head's inner layers.
        bottleneck: length of the head's bottleneck.
        outputs: length of the head's output.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's softmax.
        center_momentum: of the moving mean of the teacher's outputs.
        momentum: of the teacher; it rises from this to 1 along half a cosine.
        frozen_epochs: epochs at the start in which the head's last layer is not trained.
    """

    center: torch.Tensor

    def __init__(  # so many: all after `crops` are keys of method.options
        self,
        backbone: nn.Module,
        crops: Sequence[int],
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
        momentum: float = 0.996,
        frozen_epochs: int = 1,
    ) -> None:
        super().__init__(backbone)
        self.crops = crops
        self.temperatures = student_temperature, teacher_temperature
        self.center_momentum, self.momentum, self.frozen_epochs = center_momentum, momentum, frozen_epochs
        self.head = DINOHead(feature_dim(backbone), hidden, bottleneck, outputs)
        self.teacher = momentum_copy([self.backbone, self.head])
        self.register_buffer("center", torch.zeros(outputs))

    @property
    def encoder(self) -> nn.Module:
        return self.teacher[0]

    def forward(
        self, images: Tensors, idx_a: Tensors, idx_b: Tensors, lam: Tensors, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """See Method."""
        student = self.project([self.backbone, self.head], images)
        with torch.no_grad():
            teacher = self.project(self.teacher, images[:1]).float()
        loss = dino_loss(student, teacher, self.center, sum(self.crops), self.crops[0], *self.temperatures)
        # For after_step: the backward pass still needs the center as it is.
        self._pending_outputs = teacher.sum(0), teacher.shape[0]
        return loss_weight * loss

    def after_backward(self, epoch: int) -> None:
        if epoch < self.frozen_epochs:
            self.head.last.weight.grad = None

    def after_step(self, progress: float) -> None:
        output_sum, own = self._pending_outputs
        count = sum_over_processes(torch.full((), float(own), device=output_sum.device))
        output_sum = sum_over_processes(output_sum)
        self.center.copy_(update_center(self.center, output_sum, count, self.center_momentum))
        ema_update(self.teacher, [self.backbone, self.head], cosine_momentum(self.momentum, progress))
