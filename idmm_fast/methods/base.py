"""What all methods have in common."""

import copy
import math

import torch
from timm.layers import DropPath
from torch import nn

from ..models import Normalize
from ..models.backbone import PRETRAIN_STD


def by_size(images):
    """For each image size among the groups (uint8 (n, 3, H, W) each): (their numbers, their images together), so that one pass of a network serves them."""
    for size in dict.fromkeys(x.shape[-1] for x in images):
        members = [g for g, x in enumerate(images) if x.shape[-1] == size]
        yield members, torch.cat([images[g] for g in members]) if len(members) > 1 else images[members[0]]


class Method(nn.Module):
    """A backbone, and a `head` that is dropped after pretraining. A subclass has forward(images, idx_a, idx_b, lam, share=1.0), which returns the loss.

    Each argument has an entry a group of views: images uint8 (n, 3, H, W), crop-major, idx_a and idx_b int64 (n,), the images' numbers, lam float32 (n,),
    the share of idx_a. share: what these rows weigh among those of all processes (see MultiCropLoader.loss_weight); the loss that is
    minimised is the average of the processes' values.
    """

    required_crops: tuple[int, ...] | None = None  # number of crops of each crop group; None: any, of 2 crops in all
    needs_labels = False
    uses_mixed_images = False  # whether idx_b and lam are looked at; if not, cutmix.alpha must be 0

    def __init__(self, backbone):
        super().__init__()
        self.normalize, self.backbone = Normalize(std=PRETRAIN_STD), backbone

    @property
    def encoder(self):
        """The backbone that is kept after pretraining."""
        return self.backbone

    def embed(self, networks, images):
        """Rows of what `networks`, one after another, make of the images of all groups, in the order of the groups."""
        parts = [None] * len(images)
        for members, x in by_size(images):
            x = self.normalize(x)
            for network in networks:
                x = network(x)
            for g, rows in zip(members, x.split([images[g].shape[0] for g in members])):
                parts[g] = rows
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def after_backward(self, epoch):
        """Runs when the gradients are there, before the optimiser uses them."""

    def after_step(self, progress):
        """Runs after each step; `progress` goes from 0 to 1 over the run."""


class _Copies(nn.ModuleList):
    """Stays in evaluation mode, whatever it is part of."""

    def train(self, mode=True):
        return super().train(False)


def momentum_copy(networks):
    """A copy of these networks that no gradient reaches, without dropped paths: what a moving average starts from."""
    copies = _Copies([copy.deepcopy(network) for network in networks]).requires_grad_(False)
    for module in copies.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return copies.eval()


@torch.no_grad()
def move(copies, networks, momentum):
    """The moving average: copy <- momentum * copy + (1 - momentum) * network, for every weight of every network."""
    mine = [p for copied in copies for p in copied.parameters()]
    theirs = [p.detach() for network in networks for p in network.parameters()]
    torch._foreach_lerp_(mine, theirs, 1 - momentum)


def cosine_momentum(momentum, progress):
    """The momentum that rises from `momentum` to 1 along half a cosine while `progress` goes from 0 to 1."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2
