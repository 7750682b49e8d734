"""The rows of all processes in each of them, so that several see the negatives that one would; gradients go back to where the rows came from.

The value that training minimises is the average of the processes' losses (as DistributedDataParallel has it), and each process's loss may depend on
every row: a row's gradient is therefore the sum of what all of them have for it.
"""

import torch
import torch.distributed as dist


def spread():
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([rows.shape[0]], device=rows.device))
        counts = torch.cat(counts).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.first, ctx.count = sum(counts[: dist.get_rank()]), rows.shape[0]
        first = torch.tensor(ctx.first)
        ctx.mark_non_differentiable(first)
        return torch.cat([part[:count] for part, count in zip(parts, counts)]), first

    @staticmethod
    def backward(ctx, grad, _):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.first : ctx.first + ctx.count]


@torch.compiler.disable
def _gather(rows):
    everything, first = _Rows.apply(rows)
    return everything, int(first)


def gather_rows(rows):
    """(the rows of all processes, one process's after another's, the place of this process's first row). rows: (n, ...), n may differ between processes."""
    return _gather(rows) if spread() else (rows, 0)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


@torch.compiler.disable
def _sum(tensor):
    return _Sum.apply(tensor)


def sum_over_processes(tensor):
    """The sum of every process's `tensor`, with gradients."""
    return _sum(tensor) if spread() else tensor
