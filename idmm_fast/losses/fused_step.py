"""One step of the fused instance loss: the loss of a batch and all its gradients, some rows at a time; see fused.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from .instance import weighted
from .online_softmax import add_small_product, logits_of, online_softmax_pass, tiles

WORKSPACE_BYTES = 768 << 20  # beyond weights and gradients
_CPU_TILE_LOGITS = 1 << 18  # of a tile: 1 MB, which the cache holds beside the weights it is computed from
_TILE_LOGITS = 64 << 20  # on a GPU: launching a tile's operations then takes far less time than they do
_MIN_ROWS = 32  # for fewer rows, keeping exp(o) costs more than computing it again


@dataclass(frozen=True)
class Shard:
    """The slice of the classes that this process holds.

    Attributes:
        first: number of its first class.
        total: number of all classes, on all processes.
        group: the process group that shares the classes; None: this process holds them all.
    """

    first: int
    total: int
    group: dist.ProcessGroup | None = None

    def reduce(self, tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> torch.Tensor:
        """Combine `tensor` over the group, in place."""
        if self.group is not None:
            dist.all_reduce(tensor, op, group=self.group)
        return tensor


@dataclass(frozen=True)
class Targets:
    """The soft targets of B rows: (1 - eps) (lam e_a + (1 - lam) e_b) + eps / N.

    Attributes:
        idx_a: int64 (B,), numbers among all classes.
        idx_b: int64 (B,).
        lam: float (B,).
        row_weight: float (B,), what a row counts in the sum.
        eps: label smoothing.
    """

    idx_a: torch.Tensor
    idx_b: torch.Tensor
    lam: torch.Tensor
    row_weight: torch.Tensor
    eps: float

    def rows(self, part: slice) -> Targets:
        """The targets of some of the rows."""
        a, b, lam, row_weight = (v[part] for v in (self.idx_a, self.idx_b, self.lam, self.row_weight))
        return replace(self, idx_a=a, idx_b=b, lam=lam, row_weight=row_weight)


@dataclass(frozen=True)
class Options:
    """How the fused loss is computed.

    Attributes:
        shard: the slice of the classes that weight and bias hold.
        workspace_bytes: memory beyond weights and gradients; on a GPU a tile takes up to as much again.
        offset: float (n,), added to the logits of classes that stand for exp(offset) others; None: nothing.
        matmul_dtype: type of the products; None: that of the features.
    """

    shard: Shard
    workspace_bytes: int = WORKSPACE_BYTES
    offset: torch.Tensor | None = None
    matmul_dtype: torch.dtype | None = None


class FusedStep:
    """Loss and gradients of one batch.

    Attributes:
        losses: (B,).
        d_z, d_w, d_b: the gradients of features (B, d), weight (n, d) and bias (n,), if they are needed.
    """

    # Any: tensors, or None where they are not needed.
    d_z: Any
    d_w: Any
    d_b: Any
    exp_logits: Any

    def __init__(
        self,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: Targets,
        options: Options,
        needs_grad: bool,
    ) -> None:
        acc = torch.promote_types(weight.dtype, torch.float32)
        self.z, self.weight, self.bias = features.to(acc), weight, bias
        self.targets, self.options, self.shard = targets, options, options.shard
        self.shifted_bias = bias if options.offset is None else bias + options.offset
        self.losses = torch.empty(features.shape[0], dtype=acc, device=features.device)
        self.mean_w, self.mean_b = (
            self.shard.reduce(v.sum(0) / self.shard.total)
            for v in (_times_exp(weight, options.offset), _times_exp(bias, options.offset))
        )
        self.needs_grad = needs_grad
        self.d_z, self.d_w, self.d_b = torch.empty_like(self.z) if needs_grad else None, None, None
        classes, batch = weight.shape[0], features.shape[0]
        rows = rows_that_fit(batch, classes, options.workspace_bytes) if needs_grad else 0
        self.rows_per_pass = rows or batch
        self.tile = tile_classes(self.rows_per_pass, features.shape[1], options.workspace_bytes, self.z.device)
        self.exp_logits = _exp_buffer(rows + 1, classes, acc, self.z.device) if rows else None
        # A row of ones below exp(o) puts the part of label smoothing into the product that gives dL/dW.
        self.append_ones_row = rows > 0 and options.matmul_dtype is None and options.offset is None
        if self.append_ones_row:
            self.exp_logits[rows] = 1
        # What label smoothing gives dL/dW of every class alike.
        self.d_w_uniform = (targets.row_weight @ self.z) * (-targets.eps / self.shard.total)

    def run(self) -> None:
        """Compute `losses` and the gradients, `rows_per_pass` rows at a time."""
        eps = self.targets.eps
        for first in range(0, self.z.shape[0], self.rows_per_pass):
            part = slice(first, first + self.rows_per_pass)
            z, targets = self.z[part], self.targets.rows(part)
            exp_logits = None if self.exp_logits is None else self.exp_logits[: z.shape[0]]
            m, s, weighted_sum, m_at_tile = self._softmax_sums(z, exp_logits)
            picked = _TargetRows(z, self.weight, self.bias, targets, self.shard)
            smoothing = eps * (z @ self.mean_w + self.mean_b) if eps else 0.0
            self.losses[part] = m + s.log() - picked.logits - smoothing
            if not self.needs_grad:
                continue
            d_z = weighted_sum / s[:, None] - picked.weights - eps * self.mean_w
            self.d_z[part] = d_z * targets.row_weight[:, None]
            self._add_head_gradients(z, targets.row_weight, m, s, exp_logits, m_at_tile)
            picked.add_gradients(self.d_w, self.d_b, z, targets.row_weight)

    def _softmax_sums(self, z: torch.Tensor, exp_logits: torch.Tensor | None) -> tuple:
        """(m, s, exp(o - m) W) over the classes of all processes, and m of this one's as it was at each tile."""
        m, s, weighted_sum, m_at_tile = online_softmax_pass(
            z, self.weight, self.shifted_bias, self.tile, exp_logits, self.options.matmul_dtype
        )
        if self.shard.group is not None:
            max_m = self.shard.reduce(m.clone(), dist.ReduceOp.MAX)
            weighted_sum.mul_(torch.exp(m - max_m)[:, None])
            s, m = s * torch.exp(m - max_m), max_m
            both = self.shard.reduce(torch.cat([s[:, None], weighted_sum], 1))
            s, weighted_sum = both[:, 0], both[:, 1:]
        return m, s, weighted_sum, m_at_tile

    def _add_head_gradients(
        self,
        z: torch.Tensor,
        row_weight: torch.Tensor,
        m: torch.Tensor,
        s: torch.Tensor,
        exp_logits: torch.Tensor | None,
        m_at_tile: list[torch.Tensor],
    ) -> None:
        """Add softmax's and label smoothing's part of dL/dW and dL/db for the rows z."""
        offset, matmul_dtype, is_first = self.options.offset, self.options.matmul_dtype, self.d_w is None
        if is_first:
            self._start_head_gradients()
        for k, block in enumerate(tiles(self.weight.shape[0], self.tile)):
            if exp_logits is not None:
                e = exp_logits[:, block]
                scale = torch.exp(m_at_tile[k] - m) / s * row_weight
            else:
                e = logits_of(z, self.weight[block], self.shifted_bias[block], matmul_dtype, None)
                e = e.sub_(m[:, None]).exp_()
                scale = row_weight / s
            if self.append_ones_row and is_first:
                scaled = torch.cat([z * scale[:, None], self.d_w_uniform[None]])
                torch.mm(self.exp_logits[:, block].T, scaled, out=self.d_w[block])
            else:
                if is_first:  # label smoothing's part first; the products are added to it
                    uniform = self.d_w_uniform
                    self.d_w[block] = uniform if offset is None else uniform * offset[block].exp()[:, None]
                add_small_product(self.d_w[block], e.T, z * scale[:, None], matmul_dtype)
            self.d_b[block].addmv_(e.T, scale)

    def _start_head_gradients(self) -> None:
        """Make d_w, uninitialised, and d_b with label smoothing's part."""
        classes, like = self.weight.shape[0], self.z
        self.d_w = _reuse_grad_buffer(classes, like.shape[1], like.dtype, like.device)
        part = torch.full((classes,), -self.targets.eps / self.shard.total, dtype=like.dtype, device=like.device)
        d_b = self.targets.row_weight.sum() * part
        self.d_b = d_b if self.options.offset is None else d_b * self.options.offset.exp()


class _TargetRows:
    """What the rows' own classes contribute: (1 - eps) times lam of a and 1 - lam of b, wherever these are held.

    Attributes:
        logits: (R,), the logits of the rows' classes, weighted and added.
        weights: (R, d), the rows of W of these classes, the same way.
    """

    def __init__(
        self, z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: Targets, shard: Shard
    ) -> None:
        self.parts = []
        self.weights = torch.zeros_like(z)
        pairs = ((targets.idx_a, targets.lam), (targets.idx_b, 1 - targets.lam))
        for idx, lam in pairs if weight.shape[0] else ():  # a slice may be empty
            is_here = (idx >= shard.first) & (idx < shard.first + weight.shape[0])
            local = torch.where(is_here, idx - shard.first, 0)
            lam = (1 - targets.eps) * lam.to(z.dtype) * is_here
            self.parts.append((local, lam))
            self.weights += lam[:, None] * weight[local]
        self.logits = (z * self.weights).sum(1) + sum(weighted(lam, bias[local]) for local, lam in self.parts)
        if shard.group is not None:
            both = shard.reduce(torch.cat([self.logits[:, None], self.weights], 1))
            self.logits, self.weights = both[:, 0], both[:, 1:]

    def add_gradients(self, d_w: torch.Tensor, d_b: torch.Tensor, z: torch.Tensor, row_weight: torch.Tensor) -> None:
        """Add their part of dL/dW and dL/db, of the classes that are held here."""
        for local, lam in self.parts:
            d_w.index_add_(0, local, z * (-lam * row_weight)[:, None])
            d_b.index_add_(0, local, -lam * row_weight)


def rows_that_fit(batch: int, classes: int, workspace_bytes: int) -> int:
    """How many rows of exp(o) are kept, in equal parts of the batch; 0 where so few fit that none is kept."""
    fit = workspace_bytes // (4 * max(classes, 1))
    if fit < min(batch, _MIN_ROWS):
        return 0
    parts = -(-batch // min(fit, batch))
    return -(-batch // parts)


def tile_classes(rows: int, d: int, workspace_bytes: int, device: torch.device) -> int:
    """How many classes are worked on together.

    On a GPU so many that their launches are few, and that what a tile needs for a moment fits into the workspace: the
    logits in float32 and twice in half precision, weights and their gradients in half precision.
    """
    rows = max(rows, 1)
    if device.type == "cpu":
        return max(256, _CPU_TILE_LOGITS // rows)
    return max(256, min(_TILE_LOGITS // rows, workspace_bytes // (8 * rows + 4 * d)))


def _times_exp(values: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """Rows of weight or bias, times the number of classes that each stands for."""
    if offset is None:
        return values
    return values * (offset.exp()[:, None] if values.dim() == 2 else offset.exp())


# device -> memory for exp(o), kept from step to step: fresh pages take the system as long as a product takes.
_exp_buffers: dict[torch.device, torch.Tensor] = {}


def _exp_buffer(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised (rows, classes) for exp(o); on the CPU in the memory of the step before."""
    if device.type != "cpu":  # CUDA's allocator keeps memory by itself, and lends it to the backward pass
        return torch.empty(rows, classes, dtype=dtype, device=device)
    held = _exp_buffers.get(device)
    if held is None or held.numel() < rows * classes or held.dtype != dtype:
        _exp_buffers[device] = held = torch.empty(rows * classes, dtype=dtype, device=device)
    return held[: rows * classes].view(rows, classes)


# (rows, columns, dtype) -> the memory of the last step's gradient, kept for the same reason.
_grad_buffers: dict[tuple, Any] = {}


def _reuse_grad_buffer(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised (rows, columns); on the CPU in the memory of the step before, once nobody holds its gradient."""
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    key = rows, columns, dtype
    # 2 references: the table's and that of the call. Every tensor on the memory counts as one more.
    if key not in _grad_buffers or sys.getrefcount(_grad_buffers[key]) > 2:
        _grad_buffers.clear()
        _grad_buffers[key] = torch.empty(rows, columns, dtype=dtype).numpy()
    return torch.from_numpy(_grad_buffers[key])
