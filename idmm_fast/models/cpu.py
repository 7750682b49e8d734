"""Layers of ViTs that train faster in bf16 on a CPU. Weights, their names and results stay, results to rounding."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, linear

from ..runtime.device import Runtime


def choose_layers(module: nn.Module, runtime: Runtime) -> None:
    """On a CPU in bf16, put the layers of this file in the place of torch's; elsewhere do nothing.

    Args:
        module: the ViTs in it are changed in place. Their parameters are the same objects as before.
        runtime: what it runs on.
    """
    if runtime.device.type != "cpu" or runtime.amp != torch.bfloat16:
        return
    for layer in list(module.modules()):
        if isinstance(layer, PatchEmbed) and _is_product(layer.proj):
            layer.proj = PatchProjection(layer.proj)
        for name, child in layer.named_children():
            if type(child) is nn.GELU and child.approximate == "none":
                setattr(layer, name, CompiledGELU())


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
        """From images (B, C, H, W), of sides that are multiples of P, to (B, d, H / P, W / P)."""
        rows, channels, height, width = images.shape
        p, q = self.weight.shape[2:]
        patches = images.permute(0, 2, 3, 1).reshape(rows, height // p, p, width // q, q, channels).transpose(2, 3)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(patches.flatten(3), weight, self.bias).permute(0, 3, 1, 2)


class CompiledGELU(nn.Module):
    """GELU. Compiled, the forward pass makes the slope too, which shares its exponential."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x Phi(x), of the shape and type of x; Phi: the cumulative normal distribution."""
        return _GELU.apply(x) if torch.compiler.is_compiling() and x.requires_grad else gelu(x)


class _GELU(torch.autograd.Function):
    """x Phi(x) and its slope in float32, with Phi to 1.5e-7 by Abramowitz and Stegun 7.1.26, as in torch on AVX-512."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        v = x.float()
        e = torch.exp(-0.5 * v * v)
        t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * v.abs())
        series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
        tail = 0.5 * e * t * series
        phi = torch.where(v > 0, 1 - tail, tail)
        ctx.save_for_backward((phi + v * e / math.sqrt(2 * math.pi)).to(x.dtype))
        return (v * phi).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        (slope,) = ctx.saved_tensors
        return upstream * slope
