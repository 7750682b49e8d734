"""A layer of ViTs that trains faster in bf16 on a CPU. Weights and their names stay, and results to rounding."""

from __future__ import annotations

import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.nn.functional import linear

from ..runtime.device import Runtime


def choose_layers(module: nn.Module, runtime: Runtime) -> None:
    """On a CPU in bf16, make the patch embeddings of ViTs matrix products; elsewhere do nothing.

    Args:
        module: the ViTs in it are changed in place. Their parameters are the same objects as before.
        runtime: what it runs on.
    """
    if runtime.device.type != "cpu" or runtime.amp != torch.bfloat16:
        return
    for layer in list(module.modules()):
        if isinstance(layer, PatchEmbed) and _is_product(layer.proj):
            layer.proj = PatchProjection(layer.proj)  # type: ignore[assignment]  # timm names the layer's kind


def _is_product(proj: nn.Module) -> bool:
    """Whether it is a convolution whose windows neither overlap nor leave a pixel out."""
    return (
        type(proj) is nn.Conv2d
        and proj.kernel_size == proj.stride
        and proj.padding == (0, 0)
        and proj.dilation == (1, 1)
        and proj.groups == 1
    )


class PatchProjection(nn.Module):
    """A convolution over patches side by side, as one matrix product: torch's backward pass for it is slow in bf16.

    Args:
        conv: whose weight (d, C, P, P) and bias it takes over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From images (B, C, H, W) to (B, d, H // P, W // P); a margin that no patch covers is left out."""
        rows, channels, height, width = images.shape
        p, q = self.weight.shape[2:]
        images = images[..., : height // p * p, : width // q * q]
        patches = images.permute(0, 2, 3, 1).reshape(rows, height // p, p, width // q, q, channels).transpose(2, 3)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(patches.flatten(3), weight, self.bias).permute(0, 3, 1, 2)
