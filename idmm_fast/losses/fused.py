"""Head and instance loss in one, for so many instances that their logits do not fit: B x N is never held.

With o = z W^T + b, s the sum of exp(o) of a row and m any bound near its maximum,

    L     = m + log s - (1 - eps) (lam o_a + (1 - lam) o_b) - eps mean_c(o_c)
    dL/dz = (exp(o - m) / s) W - (1 - eps) (lam w_a + (1 - lam) w_b) - eps mean_c(w_c)
    dL/dW = (exp(o - m) / s)^T z - ...,  the same with z in the place of the rows a, b, and all

so one pass over the classes, a tile at a time, gives the loss and dL/dz together. On a CPU a tile fits the cache, on a
GPU it is as large as the workspace allows, up to 64 Mi logits. Both are sums that are rescaled when the maximum grows,
as in online softmax (online_softmax.py). dL/dW needs the final s. For that
exp(o - m) is kept for as many rows as the workspace holds: three products of matrices in all, as in the dense form.
Where not even a few rows fit, it is computed again: four products.
Gradients are computed in the forward pass, since training always needs them.

A process may hold a slice of the classes only (`Shard`). Features and targets are then those of all processes, and m,
s, o_a, o_b and dL/dz are combined over the group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .fused_step import WORKSPACE_BYTES, FusedStep, Options, Shard, Targets
from .instance import check_targets, weights_of


@torch.compiler.disable
def fused_instance_loss(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    idx_a: torch.Tensor,
    idx_b: torch.Tensor,
    lam: torch.Tensor | float,
    eps: float,
    reduction: str = "mean",
    *,
    row_weight: torch.Tensor | None = None,
    memory: int = WORKSPACE_BYTES,
    shard: Shard | None = None,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`instance_loss(features @ weight.T + bias, ...)` with all gradients, and never the logits of the whole batch.

    Sums are in float32 (float64 for float64); under autocast the products are in autocast's type. Equal to the dense
    form to 1e-6 in float64 and 1e-4 in float32, relative; in bf16 to a few thousandths.

    Args:
        features: float (B, d).
        weight: float (N, d), of N instances.
        bias: float (N,).
        idx_a: int64 (B,), as for instance_loss; so are idx_b, lam and eps.
        idx_b: int64 (B,).
        lam: float (B,) or a number, in 0..1: the weight of idx_a.
        eps: label smoothing, in 0..1.
        reduction: "mean", or "none" for the losses of all rows, without gradients.
        row_weight: float (B,), what a row counts in the sum; None: 1 / B each.
        memory: bytes of workspace, beyond weights and gradients; on a GPU a tile takes up to as much again.
        shard: the slice of the classes that weight and bias hold, where they are sharded over processes; N is then
            weight.shape[0] here and shard.total in all. Features and targets must be the same on all processes, and so
            is the loss. None: all classes.
        offset: float (N,), added to the logits of classes that stand for exp(offset) others (see head.sample_rate);
            None: nothing.

    Returns:
        float32 (float64 for float64): a scalar, or (B,) with reduction="none".

    Raises:
        ValueError: shapes or targets that do not fit.
    """
    shard = shard or Shard(0, weight.shape[0])
    fits = features.dim() == 2 and weight.dim() == 2 and features.shape[1] == weight.shape[1]
    if not fits or bias.shape != weight.shape[:1]:
        found = ", ".join(str(tuple(v.shape)) for v in (features, weight, bias))
        raise ValueError(f"features (B, d), weight (N, d) and bias (N,) do not fit: {found}")
    check_targets(features.shape[0], shard.total, idx_a, idx_b, lam, eps, features.device)
    rows, acc = features.shape[0], torch.promote_types(weight.dtype, torch.float32)
    if row_weight is None:
        row_weight = torch.full((rows,), 1 / max(rows, 1), dtype=acc, device=features.device)
    lam = weights_of(lam, acc, features.device).expand(rows)
    targets = Targets(idx_a, idx_b, lam, row_weight, eps)
    mean, losses = fused_losses(features, weight, bias, targets, Options(shard, memory, offset))
    return mean if reduction == "mean" else losses


def fused_losses(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: Targets, options: Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the weighted sum of the rows' losses, the losses (B,) without gradients), as `fused_instance_loss`.

    Nothing is checked: a class outside of this process's slice is one that another process holds. The type of the
    products is autocast's where it is on.
    """
    acc, device = torch.promote_types(weight.dtype, torch.float32), features.device.type
    targets = replace(targets, lam=targets.lam.to(acc), row_weight=targets.row_weight.to(acc))
    if torch.is_autocast_enabled(device):
        options = replace(options, matmul_dtype=torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _FusedLoss.apply(features, weight, bias, targets, options)


class _FusedLoss(torch.autograd.Function):
    """`FusedStep` as a function with gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: Targets,
        options: Options,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_grad = any(ctx.needs_input_grad[:3])
        step = FusedStep(features, weight, bias, targets, options, needs_grad)
        step.run()
        if needs_grad:
            ctx.save_for_backward(step.d_z.to(features.dtype), step.d_w, step.d_b)
        ctx.mark_non_differentiable(step.losses)
        row_weight = targets.row_weight
        return row_weight @ step.losses.masked_fill(row_weight == 0, 0.0), step.losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors
        if grad.device.type != "cpu" or grad.item() != 1:
            # On the CPU a look at the value is free, and scaling by 1 would be a pass over N x d numbers.
            grads = [g * grad for g in grads]
        return (*grads, None, None)
