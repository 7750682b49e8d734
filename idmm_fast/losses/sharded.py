"""The instance loss with the classes spread over processes: each owns a slice of the head's rows, nobody all of them.

Features and targets are gathered, every process works on its slice, and the maxima, sums and gradients are combined (see fused.py): the
same loss and the same gradients as one process with the whole head. For N = 100 million this is what makes a head possible at all.
"""

import torch
import torch.distributed as dist
from torch import nn

from .fused import MEMORY, Shard, fused
from .gather import is_distributed
from .instance import check_targets


def slice_of(total, rank, world):
    """(first, count) of the classes that `rank` of `world` holds: equal parts, rounded up, as torch.chunk and DTensor have them."""
    part = -(-total // world)
    first = min(rank * part, total)
    return first, min(part, total - first)


_DRAWN = 1 << 16  # rows that are drawn at a time


class _Gather(torch.autograd.Function):
    """The rows of all processes, one after another; backward hands each its own part of the gradient, which every process has whole."""

    @staticmethod
    def forward(ctx, rows, group, scale):
        world, ctx.rank, ctx.count, ctx.scale = dist.get_world_size(group), dist.get_rank(group), rows.shape[0], scale
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count] * ctx.scale, None, None


class ShardedHead(nn.Module):
    """A linear layer from d features to `total` instances, of which this process holds the rows of `slice_of`.

    group: the process group (None: the default one); without torch.distributed there is one slice. weight: truncated normal
    with std 0.02, bias 0, drawn from torch's default generator as models.init_head draws them: the same rows for any number of processes.
    sample_rate below 1 keeps the classes of the batch and draws so many of the others anew for every call, each standing for those that
    were left out (Partial FC, An et al., arXiv 2203.15565): the sum over the classes is then right on average,
    its logarithm, by Jensen's inequality, too small by about Var(sampled sum) / (2 sum^2), which vanishes as the number of sampled classes grows.
    """

    def __init__(self, d, total, group=None, sample_rate=1.0, memory=MEMORY):
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise ValueError(f"head.sample_rate is a share of the classes, above 0 and at most 1, not {sample_rate}")
        self.is_sharded = is_distributed(group)
        self.group = (group or dist.group.WORLD) if self.is_sharded else None
        rank, self.world = (dist.get_rank(self.group), dist.get_world_size(self.group)) if self.is_sharded else (0, 1)
        self.first, count = slice_of(total, rank, self.world)
        self.total, self.sample_rate, self.memory = total, sample_rate, memory
        self.weight, self.bias = nn.Parameter(torch.empty(count, d)), nn.Parameter(torch.zeros(count))
        with torch.no_grad():
            for start in range(0, total, _DRAWN):  # all rows are drawn, its own are kept
                rows = nn.init.trunc_normal_(torch.empty(min(_DRAWN, total - start), d), std=0.02)
                low, high = max(start, self.first), min(start + rows.shape[0], self.first + count)
                if low < high:
                    self.weight[low - self.first : high - self.first] = rows[low - start : high - start]

    def local_shard(self, rows):
        """This process's part of (total, ...)."""
        return rows[self.first : self.first + self.weight.shape[0]]

    def gather_full(self, rows):
        """From every process of several its own (count, ...): in process 0 all of them (total, ...), on the CPU; elsewhere None."""
        part, rank = slice_of(self.total, 0, self.world)[1], dist.get_rank(self.group)
        padded = rows.new_zeros(part, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)] if rank == 0 else None
        dist.gather(padded, parts, group=self.group, group_dst=0)
        return torch.cat([p.cpu() for p in parts])[: self.total] if rank == 0 else None

    @torch.compiler.disable
    def loss(self, features, idx_a, idx_b, lam, eps, averaged=False, row_weight=None):
        """The mean over the rows of all processes, the same number on each of them.

        features: float (B, d), this process's; B may differ between processes. idx_a, idx_b, lam: this process's too. averaged: whether the
        features' gradients are averaged over the processes afterwards, as DistributedDataParallel does; they are then handed out that
        much larger. row_weight: float (B,), what a row counts in the sum instead; the loss is then the average of the processes' sums.
        Which classes are sampled is drawn from torch's default generator.
        """
        check_targets(features.shape[0], self.total, idx_a, idx_b, lam, eps, features.device)
        rows, device = features.shape[0], features.device
        counts = torch.ones(rows, device=device) if row_weight is None else row_weight
        if self.is_sharded:
            most = torch.tensor(rows, device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
            short = int(most) - rows  # rows that count nothing fill up the smaller batches
            features = torch.cat([features, features.new_zeros(short, features.shape[1])])
            idx_a, idx_b, lam, counts = (torch.cat([v, v.new_zeros(short)]) for v in (idx_a, idx_b, lam, counts))
            features = _Gather.apply(features, self.group, float(self.world) if averaged else 1.0)
            idx_a, idx_b, lam, counts = (_Gather.apply(v, self.group, 1.0) for v in (idx_a, idx_b, lam, counts))
        counts = counts / (counts.sum() if row_weight is None else self.world)
        weight, bias, offset, first = self.weight, self.bias, None, self.first
        if self.sample_rate < 1:
            chosen, offset = self._sample(idx_a, idx_b)
            weight, bias, first = weight[chosen], bias[chosen], 0
            idx_a, idx_b = (self._places(idx, chosen) for idx in (idx_a, idx_b))
        return fused(
            features,
            weight,
            bias,
            idx_a,
            idx_b,
            lam,
            eps,
            "mean",
            counts,
            self.memory,
            Shard(first, self.total, self.group),
            offset,
        )

    def _sample(self, idx_a, idx_b):
        """The classes of this slice that take part, sorted, and by how much each one's logit is raised for those it stands for."""
        count = self.weight.shape[0]
        wanted = torch.cat([idx_a, idx_b]) - self.first
        own = torch.zeros(count, dtype=torch.bool, device=wanted.device)
        own[wanted[(wanted >= 0) & (wanted < count)]] = True
        others = torch.nonzero(~own).flatten()
        drawn = max(1, round(self.sample_rate * others.numel())) if others.numel() else 0
        keep = others[torch.randperm(others.numel())[:drawn].to(others.device)]
        chosen = torch.cat([torch.nonzero(own).flatten(), keep]).sort().values
        raised = torch.zeros(chosen.numel(), dtype=self.weight.dtype, device=wanted.device)
        if drawn:
            raised[~own[chosen]] = torch.log(torch.tensor(others.numel() / drawn))
        return chosen, raised

    def _places(self, idx, chosen):
        """Where the classes `idx` are among `chosen`; -1 for those that another process holds."""
        local = idx - self.first
        here = (local >= 0) & (local < self.weight.shape[0])
        return torch.where(here, torch.searchsorted(chosen, local.clamp(0, max(self.weight.shape[0] - 1, 0))), -1)

    def _state(self):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor import Shard as Rows

        mesh = init_device_mesh(self.weight.device.type, (self.world,))
        d = self.weight.shape[1]
        return {
            "weight": DTensor.from_local(
                self.weight.detach(), mesh, [Rows(0)], run_check=False, shape=torch.Size((self.total, d)), stride=(d, 1)
            ),
            "bias": DTensor.from_local(
                self.bias.detach(), mesh, [Rows(0)], run_check=False, shape=torch.Size((self.total,)), stride=(1,)
            ),
        }

    def save(self, folder):
        """Write all slices to `folder` (torch.distributed.checkpoint); every process calls it."""
        import torch.distributed.checkpoint as dcp

        dcp.save(
            self._state() if self.is_sharded else {"weight": self.weight.detach(), "bias": self.bias.detach()},
            checkpoint_id=str(folder),
        )

    def load(self, folder):
        """Read this process's slice from `folder`, which any number of processes may have written."""
        import torch.distributed.checkpoint as dcp

        state = self._state() if self.is_sharded else {"weight": self.weight.detach(), "bias": self.bias.detach()}
        dcp.load(state, checkpoint_id=str(folder))
