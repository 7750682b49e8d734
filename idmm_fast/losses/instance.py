"""The label-smoothed instance loss of IDMM (arXiv 2201.10728), from index targets."""

import torch


def instance_loss(logits, idx_a, idx_b, lam, eps, reduction="mean"):
    """Cross entropy with the soft target (1 - eps) (lam e_a + (1 - lam) e_b) + eps / C, which is never made.

        L = logsumexp(o) - (1 - eps) (lam o_a + (1 - lam) o_b) - eps mean_c(o_c)

    logits: float (B, C); half-precision logits are reduced in float32. idx_a, idx_b: int64 (B,), classes. lam: float
    (B,) in 0..1, or a number, the share of idx_a. eps: label smoothing in 0..1. Returns the mean over the rows, or with
    reduction="none" all of them (B,). It serves instances (C images) and ordinary classes alike.
    """
    o = logits if logits.dtype == torch.float64 else logits.float()
    o_a = o.gather(1, idx_a.unsqueeze(1)).squeeze(1)
    o_b = o.gather(1, idx_b.unsqueeze(1)).squeeze(1)
    loss = o.logsumexp(1) - (1 - eps) * (lam * o_a + (1 - lam) * o_b) - eps * o.mean(1)
    return loss.mean() if reduction == "mean" else loss
