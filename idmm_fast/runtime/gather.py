"""Rows gathered from all processes, and sums over them, with gradients.

So several processes see the negatives, and the batch statistics, that one process would see.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce


def is_distributed(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there are several processes (in `group`; None: at all)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


class _AllGather(torch.autograd.Function):
    """The rows of all processes, one process's after another's.

    The gradient of a row goes back to the process that it came from. There are two kinds, since two kinds of losses
    follow: either each process has a loss of its own, and the gradient is the sum of what all of them have for the row
    (grad_scale None); or all processes compute the same loss, each has the whole gradient, and takes its part of it,
    times grad_scale, without asking the others.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int], group: Any, grad_scale: float | None) -> torch.Tensor:
        ctx.first, ctx.count = sum(counts[: dist.get_rank(group)]), rows.shape[0]
        ctx.group, ctx.grad_scale = group, grad_scale
        padded = rows.contiguous()
        if rows.shape[0] < max(counts):  # all_gather wants equal shapes
            padded = rows.new_zeros(max(counts), *rows.shape[1:])
            padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.grad_scale is None:
            grad = grad.contiguous()
            dist.all_reduce(grad, group=ctx.group)
        own = grad[ctx.first : ctx.first + ctx.count]
        return own if ctx.grad_scale is None else own * ctx.grad_scale, None, None, None


@torch.compiler.disable
def _gather(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    # On the CPU, over gloo: read back from a GPU, they would wait for all that it was given to do.
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([rows.shape[0]]))
    sizes = torch.cat(counts).tolist()
    return _AllGather.apply(rows, sizes, None, None), sum(sizes[: dist.get_rank()])


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Gather rows for a loss that each process computes for itself.

    What training minimises is the average of the processes' losses (as with DistributedDataParallel). Each may depend
    on every row, so a row's gradient is the sum of what all of them have for it.

    Args:
        rows: (n, ...) of this process; n may differ between processes.

    Returns:
        (the rows of all processes, (N, ...); the place of this process's first row among them).
    """
    return _gather(rows) if is_distributed() else (rows, 0)


def gather_equal_rows(rows: torch.Tensor, group: dist.ProcessGroup | None, grad_scale: float = 1.0) -> torch.Tensor:
    """Gather rows for one loss that all processes of a group compute alike.

    Args:
        rows: (n, ...) of this process; n is the same on all of them.
        group: the process group.
        grad_scale: what the gradient of this process's rows is multiplied by.

    Returns:
        (world * n, ...): the rows of all processes.
    """
    return _AllGather.apply(rows, [rows.shape[0]] * dist.get_world_size(group), group, grad_scale)


@torch.compiler.disable
def _sum(tensor: torch.Tensor) -> torch.Tensor:
    return all_reduce(tensor)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, with gradients."""
    return _sum(tensor) if is_distributed() else tensor
