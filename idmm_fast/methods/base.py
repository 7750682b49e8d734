"""What all methods have in common."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from ..models import Normalize

Tensors = Sequence[torch.Tensor]  # one for each crop group


def by_size(images: Tensors) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Put crop groups of one size together, so that one pass of a network serves them.

    Args:
        images: uint8 (n, 3, H, W) of each crop group.

    Yields:
        For each size: (the numbers of the groups that have it, their images, one group's after another's).
    """
    for size in dict.fromkeys(x.shape[-1] for x in images):
        members = [g for g, x in enumerate(images) if x.shape[-1] == size]
        yield members, torch.cat([images[g] for g in members]) if len(members) > 1 else images[members[0]]


class Method(nn.Module):
    """A backbone, and a `head` that is dropped after pretraining. A subclass has `forward`, which returns the loss.

    Attributes of the class:
        required_crops: number of crops of each crop group; None: any, of 2 crops in all.
        needs_labels: whether the training images must have labels.
        uses_mixed_images: whether idx_b and lam are looked at; if not, cutmix.alpha must be 0.
    """

    required_crops: tuple[int, ...] | None = None
    needs_labels = False
    uses_mixed_images = False
    head: Any  # of each method's own kind

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.normalize, self.backbone = Normalize(pretraining=True), backbone

    def forward(
        self, images: Tensors, idx_a: Tensors, idx_b: Tensors, lam: Tensors, loss_weight: float = 1.0
    ) -> torch.Tensor:
        """The loss of a batch. The first four arguments have an entry for each crop group.

        Args:
            images: uint8 (n, 3, H, W), crop-major: the first crop of every image, then the second one.
            idx_a: int64 (n,), the images' numbers.
            idx_b: int64 (n,), the numbers of the images that are mixed in.
            lam: float32 (n,), the weight of idx_a.
            loss_weight: what this process's rows count among those of all processes; see MultiCropLoader.loss_weight.
                The loss that training minimises is the average of the processes' losses.

        Returns:
            float, scalar.
        """
        raise NotImplementedError

    @property
    def encoder(self) -> nn.Module:
        """The backbone that is kept after pretraining."""
        return self.backbone

    def project(self, networks: Sequence[nn.Module] | nn.ModuleList, images: Tensors) -> torch.Tensor:
        """Run networks, one after another, on the images of all crop groups.

        Args:
            networks: the backbone, or a copy of it, then what is put on it.
            images: uint8 (n, 3, H, W) of each group.

        Returns:
            float (N, d): the rows of all groups, in the order of the groups.
        """
        parts = list(images)  # an entry each, to be replaced
        for members, x in by_size(images):
            x = self.normalize(x)
            for network in networks:
                x = network(x)
            for g, rows in zip(members, x.split([images[g].shape[0] for g in members])):
                parts[g] = rows
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def after_backward(self, epoch: int) -> None:
        """Runs when the gradients are there, before the optimizer uses them."""

    def after_step(self, progress: float) -> None:
        """Runs after each step; `progress` goes from 0 to 1 over the training."""


class _Frozen(nn.ModuleList):
    """Stays in evaluation mode, whatever it is part of."""

    def train(self, mode: bool = True) -> _Frozen:
        """As in evaluation, whatever `mode` is."""
        return super().train(False)


def momentum_copy(networks: Sequence[nn.Module]) -> nn.ModuleList:
    """A copy of these networks that no gradient reaches, without stochastic depth: a moving average starts from it."""
    copies = _Frozen([copy.deepcopy(network) for network in networks]).requires_grad_(False)
    for module in copies.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return copies.eval()


@torch.no_grad()
def ema_update(averages: nn.ModuleList, networks: Sequence[nn.Module], momentum: float) -> None:
    """The moving average: average <- momentum * average + (1 - momentum) * network, for every weight.

    Buffers, such as the running statistics of batch normalisation, are copied.

    Args:
        averages: made of `networks` by `momentum_copy`.
        networks: the networks that are trained.
        momentum: 0..1.
    """
    mine: list[torch.Tensor] = [p for average in averages for p in average.parameters()]
    theirs = [p.detach() for network in networks for p in network.parameters()]
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
    buffers = [b for average in averages for b in average.buffers()]
    if buffers:
        torch._foreach_copy_(buffers, [b for network in networks for b in network.buffers()])
        for average in averages:  # LeViT, whose buffers index them, then drops attention biases of older weights
            average.train()
            average.eval()


def cosine_momentum(momentum: float, progress: float) -> float:
    """The momentum that rises from `momentum` to 1 along half a cosine while `progress` goes from 0 to 1."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2
