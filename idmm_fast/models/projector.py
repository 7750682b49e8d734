"""The small networks that other methods than IDMM put on a backbone while they pretrain it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..runtime.gather import is_distributed, sum_over_processes


class BatchNorm(nn.Module):
    """Batch normalisation of (n, d) by the statistics of the batch, always, those of all processes together.

    It works on the CPU too, which nn.SyncBatchNorm can't. There are no running statistics, since the network that it is
    part of is dropped after pretraining.

    Args:
        d: number of features.
        affine: whether there are a scale and a shift that are learnt.
        eps: added to the variance.
    """

    def __init__(self, d: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d), normalised, in float32."""
        x = x.float()
        if not is_distributed():
            return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        count = sum_over_processes(torch.full((), float(x.shape[0]), device=x.device))
        centred = x - sum_over_processes(x.sum(0)) / count
        result = centred * (sum_over_processes(centred.square().sum(0)) / count + self.eps).rsqrt()
        return result if self.weight is None or self.bias is None else result * self.weight + self.bias


def mlp(
    widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, batch_norm: bool = False
) -> nn.Sequential:
    """Linear layers with an activation between them.

    Args:
        widths: of the input and of the output of every layer.
        activation: called without arguments, makes an activation.
        batch_norm: whether there is a BatchNorm after each layer, the last one without scale and shift, and no biases,
            as in MoCo v3.
    """
    layers: list[nn.Module] = []
    for k, (d, width) in enumerate(zip(widths[:-1], widths[1:])):
        last = k == len(widths) - 2
        layers.append(nn.Linear(d, width, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm(width, affine=not last))
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)
