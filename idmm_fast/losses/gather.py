"""The rows of all processes in each of them, so that several see the negatives that one would; gradients go back to where the rows came from.

The value that training minimises is the average of the processes' losses (as DistributedDataParallel has it), and each process's loss may depend on
every row: a row's gradient is therefore the sum of what all of them have for it.
"""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce


def is_distributed(group=None):
    """Whether there are several processes (in `group`; None: at all)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, counts, first):
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.first, ctx.count = first, rows.shape[0]
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.first : ctx.first + ctx.count], None, None


@torch.compiler.disable
def _gather(rows):
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([rows.shape[0]], device=rows.device))
    counts = torch.cat(counts).tolist()
    first = sum(counts[: dist.get_rank()])
    return _Rows.apply(rows, counts, first), first


def gather_rows(rows):
    """(the rows of all processes, one process's after another's, the place of this process's first row). rows: (n, ...), n may differ between processes."""
    return _gather(rows) if is_distributed() else (rows, 0)


@torch.compiler.disable
def _sum(tensor):
    return all_reduce(tensor)


def sum_over_processes(tensor):
    """The sum of every process's `tensor`, with gradients."""
    return _sum(tensor) if is_distributed() else tensor
