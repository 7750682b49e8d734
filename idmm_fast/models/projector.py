"""The small networks that other methods put on a backbone for the time of pretraining."""

import torch
from torch import nn

from ..losses.gather import is_distributed, sum_over_processes


class BatchNorm(nn.Module):
    """Batch normalisation of (n, d) by the statistics of the batch, always, those of all processes together; on the CPU too, which
    nn.SyncBatchNorm can't. There are no running statistics, since what it is part of is dropped after pretraining."""

    def __init__(self, d, affine=True, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d)) if affine else None

    def forward(self, x):
        x = x.float()
        if not is_distributed():
            return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        total = sum_over_processes(torch.tensor(float(x.shape[0]), device=x.device))
        centred = x - sum_over_processes(x.sum(0)) / total
        result = centred * (sum_over_processes(centred.square().sum(0)) / total + self.eps).rsqrt()
        return result if self.weight is None else result * self.weight + self.bias


def mlp(widths, activation=nn.ReLU, batch_norm=False):
    """Linear layers of these widths (input first) with an activation between them. batch_norm: after each layer, the last one without scale and shift, and
    no biases, as MoCo v3 has it."""
    layers = []
    for k, (d, width) in enumerate(zip(widths[:-1], widths[1:])):
        last = k == len(widths) - 2
        layers.append(nn.Linear(d, width, bias=not batch_norm))
        if batch_norm:
            layers.append(BatchNorm(width, affine=not last))
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)
