"""The label-smoothed instance loss of IDMM (arXiv 2201.10728), from index targets."""

import torch
from torch.autograd.function import once_differentiable


def check_targets(rows, classes, idx_a, idx_b, lam, eps, device):
    """Raise ValueError for targets that do not fit `rows` outputs over `classes`. What only the values can tell is looked at on the CPU,
    where it costs a look at a few numbers; on a GPU it would stop the queue, and while compiling there are no values."""
    for name, idx in (("idx_a", idx_a), ("idx_b", idx_b)):
        if idx.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, not {idx.dtype}")
        if idx.shape != (rows,):
            raise ValueError(f"{name} must have an entry for each of the {rows} rows, not shape {tuple(idx.shape)}")
        if idx.device != device:
            raise ValueError(f"{name} is on {idx.device} and the logits or features on {device}")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps, the label smoothing, must be within 0..1, not {eps}")
    if isinstance(lam, torch.Tensor):
        if not lam.is_floating_point():
            raise ValueError(f"lam must be floating point, not {lam.dtype}")
        if lam.shape not in ((rows,), ()):
            raise ValueError(f"lam must have an entry for each of the {rows} rows, not shape {tuple(lam.shape)}")
        if lam.device != device and lam.dim():
            raise ValueError(f"lam is on {lam.device} and the logits or features on {device}")
    if torch.compiler.is_compiling() or device.type != "cpu" or rows == 0:
        return
    for name, idx in (("idx_a", idx_a), ("idx_b", idx_b)):
        low, high = (int(v) for v in idx.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name} must be within 0..{classes - 1}, and holds {low if low < 0 else high}: are there as many classes as images?"
            )
    low, high = (float(v) for v in (lam.aminmax() if isinstance(lam, torch.Tensor) else (lam, lam)))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"lam, the share of idx_a, must be within 0..1, and holds {low if not low >= 0 else high}")


def weighed(weight, values):
    """weight * values, but 0 where the weight is 0, of infinite values too: a target that weighs nothing asks nothing of a logit of -inf."""
    return torch.where(weight == 0, 0.0, weight * values)


_BLOCK = 1 << 18  # logits that are worked on together: 1 MB, which the cache holds


class _InstanceLoss(torch.autograd.Function):
    """The rows' losses or their mean, and on the way the gradient: every logit is fetched from memory once."""

    @staticmethod
    def forward(ctx, logits, idx_a, idx_b, lam, eps, mean):
        rows, classes = logits.shape
        lam = torch.as_tensor(lam, dtype=logits.dtype, device=logits.device).expand(rows)
        losses, grad = logits.new_empty(rows), torch.empty_like(logits)
        step = max(1, _BLOCK // classes)
        unit = 1 / rows if mean and rows else 1.0  # what a row counts
        for first in range(0, rows, step):
            part = slice(first, first + step)
            o, p = logits[part], grad[part]
            top, middle = o.amax(1, keepdim=True), o.mean(1) if eps else 0.0
            torch.sub(o, top, out=p).exp_()
            s = p.sum(1, keepdim=True)
            a, b, share = idx_a[part, None], idx_b[part, None], (1 - eps) * lam[part, None]
            rest = (1 - eps) - share
            picked = weighed(share, o.gather(1, a)) + weighed(rest, o.gather(1, b))
            losses[part] = (top + s.log() - picked).squeeze(1) - eps * middle
            p.mul_(unit / s).sub_(unit * eps / classes).scatter_add_(1, a, -unit * share).scatter_add_(
                1, b, -unit * rest
            )
        ctx.save_for_backward(grad)
        return losses.mean() if mean else losses

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        if upstream.dim():
            grad = grad * upstream[:, None]
        elif (
            upstream.device.type != "cpu" or upstream.item() != 1
        ):  # on the CPU a look is free, and scaling by 1 a pass over all logits
            grad = grad * upstream
        return grad, None, None, None, None, None


def instance_loss(logits, idx_a, idx_b, lam, eps, reduction="mean"):
    """Cross entropy with the soft target (1 - eps) (lam e_a + (1 - lam) e_b) + eps / C, which is never made.

        L = logsumexp(o) - (1 - eps) (lam o_a + (1 - lam) o_b) - eps mean_c(o_c)

    logits: float (B, C); half-precision logits are reduced in float32. idx_a, idx_b: int64 (B,), classes. lam: float
    (B,) in 0..1, or a number, the share of idx_a. eps: label smoothing in 0..1. Returns the mean over the rows, or with
    reduction="none" all of them (B,). It serves instances (C images) and ordinary classes alike. Raises ValueError.
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
    lam = torch.as_tensor(lam, dtype=o.dtype, device=o.device)
    loss = o.logsumexp(1) - (1 - eps) * (weighed(lam, o_a) + weighed(1 - lam, o_b)) - (eps * o.mean(1) if eps else 0.0)
    return loss.mean() if reduction == "mean" else loss
