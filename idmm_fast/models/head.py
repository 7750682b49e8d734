"""The linear head, for instances and for classes."""

from __future__ import annotations

import torch
from torch import nn

from .normalize import Normalize


def init_head(dim: int, classes: int) -> nn.Linear:
    """A linear layer (dim -> classes): weight truncated normal of std 0.02, bias 0, as IDMM's authors have it."""
    head = nn.utils.skip_init(nn.Linear, dim, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


class Classifier(nn.Module):
    """Backbone and linear layer, from uint8 images to logits.

    Args:
        backbone: from normalised images to features (B, d).
        head: from features to logits.
        normalize: how images are normalised; None: as fine-tuning does.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, normalize: Normalize | None = None) -> None:
        super().__init__()
        self.normalize, self.backbone, self.head = normalize or Normalize(), backbone, head

    def forward(
        self, images: torch.Tensor, partner: torch.Tensor | None = None, lam: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logits, with mixup x = lam * x + (1 - lam) * x[partner] where there is a partner.

        Args:
            images: uint8 (B, 3, H, W).
            partner: int64 (B,), rows; None: no mixup.
            lam: float, scalar.

        Returns:
            (B, classes).
        """
        x = self.normalize(images)
        if partner is not None:
            x = lam * x + (1 - lam) * x[partner]  # type: ignore[operator]  # lam comes with partner
        return self.head(self.backbone(x))


class FrozenBackbone(Classifier):
    """A classifier whose linear layer alone is trained.

    The backbone gets no gradients and stays in evaluation mode: no stochastic depth, and the running statistics of
    batch normalisation stay too.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, normalize: Normalize | None = None) -> None:
        super().__init__(backbone.requires_grad_(False), head, normalize)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Training or evaluation mode, but for the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self
