"""The self-distillation loss of Cao and Wu (arXiv 2404.19289): from the probabilities to their square roots."""

from __future__ import annotations

import torch


def sqrt_kl_loss(logits: torch.Tensor) -> torch.Tensor:
    """The mean over the rows of KL(p || u), u being the square root of p = softmax(o), normalised and held fixed.

        L     = log sum_c sqrt(p_c) - H(p) / 2,  H(p) the entropy
        dL/do = p (log p + H(p)) / 2,  half the gradient of -H(p)

    so it draws a row's probabilities towards uniform ones, and every class takes part in every step. Direction and
    stopped gradient are those of the authors' released code (main.py of CupidJay/Efficient_SSL), which adds 20 times
    this, of cosines, to the instance loss.

    Args:
        logits: float (B, C), finite. Half-precision logits are reduced in float32.

    Returns:
        float32 (float64 of float64 logits), scalar, at least 0.
    """
    o = logits if logits.dtype == torch.float64 else logits.float()
    log_p = o.log_softmax(1)
    log_u = (0.5 * o.detach()).log_softmax(1)  # sqrt(p) is proportional to exp(o / 2)
    return (log_p.exp() * (log_p - log_u)).sum(1).mean()
