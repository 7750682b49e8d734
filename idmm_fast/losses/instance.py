"""The label-smoothed instance loss of IDMM (Cao, Yu and Wu, arXiv 2201.10728), from index targets."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_CPU_BLOCK_LOGITS = 1 << 18  # logits that are worked on together: 1 MB, which the cache holds


def instance_loss(
    logits: torch.Tensor,
    idx_a: torch.Tensor,
    idx_b: torch.Tensor,
    lam: torch.Tensor | float,
    eps: float,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross entropy with the soft target (1 - eps) (lam e_a + (1 - lam) e_b) + eps / C, which is never made.

        L = logsumexp(o) - (1 - eps) (lam o_a + (1 - lam) o_b) - eps mean_c(o_c)

    It serves instances (C images) and ordinary classes alike.

    Args:
        logits: float (B, C). Half-precision logits are reduced in float32.
        idx_a: int64 (B,), classes.
        idx_b: int64 (B,), the classes that are mixed in.
        lam: float (B,) or a number, in 0..1: the weight of idx_a.
        eps: label smoothing, in 0..1.
        reduction: "mean", or "none" for the losses of all rows.

    Returns:
        float32 (float64 of float64 logits): a scalar, or (B,) with reduction="none".

    Raises:
        ValueError: targets that do not fit the logits.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point (B, C), not {logits.dtype} {tuple(logits.shape)}")
    check_targets(logits.shape[0], logits.shape[1], idx_a, idx_b, lam, eps, logits.device)
    o = logits if logits.dtype == torch.float64 else logits.float()
    if not torch.compiler.is_compiling():  # compiled, the definition below becomes the same few passes
        with torch.autocast(logits.device.type, enabled=False):
            return _InstanceLoss.apply(o, idx_a, idx_b, lam, eps, reduction == "mean")
    o_a = o.gather(1, idx_a.unsqueeze(1)).squeeze(1)
    o_b = o.gather(1, idx_b.unsqueeze(1)).squeeze(1)
    lam = weights_of(lam, o.dtype, o.device)
    loss = (
        o.logsumexp(1) - (1 - eps) * (weighted(lam, o_a) + weighted(1 - lam, o_b)) - (eps * o.mean(1) if eps else 0.0)
    )
    return loss.mean() if reduction == "mean" else loss


class _InstanceLoss(torch.autograd.Function):
    """The rows' losses or their mean, and on the way the gradient: every logit is fetched from memory once."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        idx_a: torch.Tensor,
        idx_b: torch.Tensor,
        lam: torch.Tensor | float,
        eps: float,
        mean: bool,
    ) -> torch.Tensor:
        rows, classes = logits.shape
        lam = weights_of(lam, logits.dtype, logits.device).expand(rows)
        losses, grad = logits.new_empty(rows), torch.empty_like(logits)
        # On a GPU all at once: no cache holds a block, and each would be a dozen launches.
        step = max(1, _CPU_BLOCK_LOGITS // classes if logits.device.type == "cpu" else rows)
        row_weight = 1 / rows if mean and rows else 1.0
        for first in range(0, rows, step):
            part = slice(first, first + step)
            o, p = logits[part], grad[part]
            max_logit, mean_logit = o.amax(1, keepdim=True), o.mean(1) if eps else 0.0
            torch.sub(o, max_logit, out=p).exp_()
            s = p.sum(1, keepdim=True)
            a, b, lam_a = idx_a[part, None], idx_b[part, None], (1 - eps) * lam[part, None]
            lam_b = (1 - eps) - lam_a
            target_logit = weighted(lam_a, o.gather(1, a)) + weighted(lam_b, o.gather(1, b))
            losses[part] = (max_logit + s.log() - target_logit).squeeze(1) - eps * mean_logit
            p.mul_(row_weight / s).sub_(row_weight * eps / classes)
            p.scatter_add_(1, a, -row_weight * lam_a).scatter_add_(1, b, -row_weight * lam_b)
        ctx.save_for_backward(grad)
        return losses.mean() if mean else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        if upstream.dim():
            grad = grad * upstream[:, None]
        elif upstream.device.type != "cpu" or upstream.item() != 1:
            # On the CPU a look at the value is free, and scaling by 1 would be a pass over all logits.
            grad = grad * upstream
        return grad, None, None, None, None, None


def weights_of(lam: torch.Tensor | float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """lam as a tensor on the device. A number is filled in there: its copy would wait for what the device is doing."""
    if isinstance(lam, torch.Tensor):
        return lam.to(device, dtype)
    return torch.full((), lam, dtype=dtype, device=device)


def weighted(weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """weight * values, but 0 where the weight is 0: a target without weight asks nothing of a logit of -inf."""
    return torch.where(weight == 0, 0.0, weight * values)


def check_targets(
    rows: int,
    classes: int,
    idx_a: torch.Tensor,
    idx_b: torch.Tensor,
    lam: torch.Tensor | float,
    eps: float,
    device: torch.device,
) -> None:
    """Check that the targets of `instance_loss` fit so many rows of logits over so many classes on a device.

    Values are looked at on the CPU alone, where that costs little: on a GPU it would wait for the queue, and while
    torch.compile traces there are none.

    Raises:
        ValueError: a type, shape, device or value that does not fit; the message names the argument.
    """
    _check_types(rows, idx_a, idx_b, lam, device)
    if not 0 <= eps <= 1:
        raise ValueError(f"eps, the label smoothing, must be within 0..1, not {eps}")
    if torch.compiler.is_compiling() or device.type != "cpu" or rows == 0:
        return
    for name, idx in (("idx_a", idx_a), ("idx_b", idx_b)):
        low, high = (int(v) for v in idx.aminmax())
        if low < 0 or high >= classes:
            found = low if low < 0 else high
            raise ValueError(
                f"{name} must be within 0..{classes - 1}, and holds {found}: are there as many classes as images?"
            )
    lowest, highest = (float(v) for v in (lam.aminmax() if isinstance(lam, torch.Tensor) else (lam, lam)))
    if not (lowest >= 0 and highest <= 1):
        wrong = lowest if not lowest >= 0 else highest
        raise ValueError(f"lam, the weight of idx_a, must be within 0..1, and holds {wrong}")


def _check_types(
    rows: int, idx_a: torch.Tensor, idx_b: torch.Tensor, lam: torch.Tensor | float, device: torch.device
) -> None:
    """What `check_targets` tells without the values."""
    for name, idx in (("idx_a", idx_a), ("idx_b", idx_b)):
        if idx.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, not {idx.dtype}")
        if idx.shape != (rows,):
            raise ValueError(f"{name} must have an entry for each of the {rows} rows, not shape {tuple(idx.shape)}")
        if idx.device != device:
            raise ValueError(f"{name} is on {idx.device} and the logits or features on {device}")
    if isinstance(lam, torch.Tensor):
        if not lam.is_floating_point():
            raise ValueError(f"lam must be floating point, not {lam.dtype}")
        if lam.shape not in ((rows,), ()):
            raise ValueError(f"lam must have an entry for each of the {rows} rows, not shape {tuple(lam.shape)}")
        if lam.device != device and lam.dim():
            raise ValueError(f"lam is on {lam.device} and the logits or features on {device}")
