"""The instance loss with a head that is sharded over the processes: each holds a slice of its rows, nobody all of them.

Features and targets are gathered, each process works on its slice, and maxima, sums and gradients are combined (see
fused.py): the same loss and the same gradients as of one process with the whole head. So heads of 100 million
instances become possible.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ..runtime.gather import gather_equal_rows, is_distributed
from .fused import fused_losses
from .fused_step import WORKSPACE_BYTES, Options, Shard, Targets
from .instance import check_targets

_ROWS_SAMPLED_TOGETHER = 1 << 16  # of the initial weights, so that the whole head is never held


def slice_of(total: int, rank: int, world: int) -> tuple[int, int]:
    """(first, count) of the classes that process `rank` of `world` holds: equal parts, rounded up."""
    part = -(-total // world)
    first = min(rank * part, total)
    return first, min(part, total - first)


class ShardedHead(nn.Module):
    """A linear layer from d features to `total` instances, of which this process holds the rows of `slice_of`.

    The weights are truncated normal with std 0.02, the bias 0, sampled from torch's default generator as by
    models.init_head: the same rows for any number of processes.

    With sample_rate below 1, a step works on the classes of the batch and on a random sample of the others, each of
    which stands for those that were left out (Partial FC, An et al., arXiv 2203.15565). The sum over the classes is
    then right on average. Its logarithm is, by Jensen's inequality, too small by about Var(sampled sum) / (2 sum^2),
    which vanishes as the sample grows.

    Args:
        d: length of a feature vector.
        total: number of instances.
        group: the process group, which takes tensors on the CPU too; None: the default one. Without torch.distributed
            there is one slice.
        sample_rate: fraction of the classes outside the batch that takes part in a step, above 0 and at most 1.
        workspace_bytes: memory of the loss, beyond weights and gradients.

    Raises:
        ValueError: a sample_rate out of range.
    """

    def __init__(
        self,
        d: int,
        total: int,
        group: dist.ProcessGroup | None = None,
        sample_rate: float = 1.0,
        workspace_bytes: int = WORKSPACE_BYTES,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise ValueError(f"head.sample_rate is a fraction of the classes, above 0 and at most 1, not {sample_rate}")
        self.is_sharded = is_distributed(group)
        self.group = (group or dist.group.WORLD) if self.is_sharded else None
        rank, self.world = (dist.get_rank(self.group), dist.get_world_size(self.group)) if self.is_sharded else (0, 1)
        self.first, count = slice_of(total, rank, self.world)
        self.total, self.sample_rate, self.workspace_bytes = total, sample_rate, workspace_bytes
        self.weight, self.bias = nn.Parameter(torch.empty(count, d)), nn.Parameter(torch.zeros(count))
        with torch.no_grad():
            for start in range(0, total, _ROWS_SAMPLED_TOGETHER):  # all rows are sampled, this process's are kept
                rows = torch.empty(min(_ROWS_SAMPLED_TOGETHER, total - start), d)
                nn.init.trunc_normal_(rows, std=0.02)
                low, high = max(start, self.first), min(start + rows.shape[0], self.first + count)
                if low < high:
                    self.weight[low - self.first : high - self.first] = rows[low - start : high - start]

    def local_shard(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of (total, ...)."""
        return rows[self.first : self.first + self.weight.shape[0]]

    def gather_full(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Gather the slices of all processes; each must call it.

        Args:
            rows: (count, ...), this process's slice.

        Returns:
            (total, ...) on the CPU in process 0, None in the others.
        """
        part, rank = slice_of(self.total, 0, self.world)[1], dist.get_rank(self.group)
        padded = rows.new_zeros(part, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)] if rank == 0 else None
        dist.gather(padded, parts, group=self.group, group_dst=0)
        return torch.cat([p.cpu() for p in parts])[: self.total] if parts is not None else None

    @torch.compiler.disable
    def loss(
        self,
        features: torch.Tensor,
        idx_a: torch.Tensor,
        idx_b: torch.Tensor,
        lam: torch.Tensor,
        eps: float,
        grads_averaged: bool = False,
        row_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean over the rows of all processes, the same number on each of them.

        Which classes are sampled comes from torch's default generator.

        Args:
            features: float (B, d) of this process; B may differ between processes.
            idx_a: int64 (B,), as for instance_loss; so are idx_b, lam and eps.
            idx_b: int64 (B,).
            lam: float (B,).
            eps: label smoothing.
            grads_averaged: whether the gradients of the features are averaged over the processes afterwards, as by
                DistributedDataParallel; they are then made that much larger.
            row_weight: float (B,), what a row counts in the sum; the loss is then the average of the processes' sums.
                None: the mean of all rows.

        Raises:
            ValueError: targets that do not fit.
        """
        check_targets(features.shape[0], self.total, idx_a, idx_b, lam, eps, features.device)
        rows, device = features.shape[0], features.device
        weights = torch.ones(rows, device=device) if row_weight is None else row_weight
        if self.is_sharded:
            most = torch.tensor(rows)  # over gloo: read back from a GPU, it would wait for all that was launched
            dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
            short = int(most) - rows  # rows that count nothing fill up the smaller batches
            features = torch.cat([features, features.new_zeros(short, features.shape[1])])
            idx_a, idx_b, lam, weights = (torch.cat([v, v.new_zeros(short)]) for v in (idx_a, idx_b, lam, weights))
            features = gather_equal_rows(features, self.group, float(self.world) if grads_averaged else 1.0)
            idx_a, idx_b, lam, weights = (gather_equal_rows(v, self.group) for v in (idx_a, idx_b, lam, weights))
        weights = weights / (weights.sum() if row_weight is None else self.world)
        weight: torch.Tensor
        bias: torch.Tensor
        weight, bias, offset, first = self.weight, self.bias, None, self.first
        if self.sample_rate < 1:
            chosen, offset = self._sample_classes(idx_a, idx_b)
            weight, bias, first = weight[chosen], bias[chosen], 0
            idx_a, idx_b = (self._places_among(idx, chosen) for idx in (idx_a, idx_b))
        options = Options(Shard(first, self.total, self.group), self.workspace_bytes, offset)
        return fused_losses(features, weight, bias, Targets(idx_a, idx_b, lam, weights, eps), options)[0]

    def _sample_classes(self, idx_a: torch.Tensor, idx_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(this slice's classes that take part, sorted; the offset of each one's logit for those it stands for)."""
        count = self.weight.shape[0]
        local = torch.cat([idx_a, idx_b]) - self.first
        in_batch = torch.zeros(count, dtype=torch.bool, device=local.device)
        in_batch[local[(local >= 0) & (local < count)]] = True
        others = torch.nonzero(~in_batch).flatten()
        sampled = max(1, round(self.sample_rate * others.numel())) if others.numel() else 0
        keep = others[torch.randperm(others.numel())[:sampled].to(others.device)]
        chosen = torch.cat([torch.nonzero(in_batch).flatten(), keep]).sort().values
        offset = torch.zeros(chosen.numel(), dtype=self.weight.dtype, device=local.device)
        if sampled:
            offset[~in_batch[chosen]] = torch.log(torch.tensor(others.numel() / sampled))
        return chosen, offset

    def _places_among(self, idx: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Where the classes `idx` are among `chosen`; -1 for those that another process holds."""
        local = idx - self.first
        is_here = (local >= 0) & (local < self.weight.shape[0])
        return torch.where(is_here, torch.searchsorted(chosen, local.clamp(0, max(self.weight.shape[0] - 1, 0))), -1)
