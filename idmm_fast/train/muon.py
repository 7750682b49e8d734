"""Muon, the optimiser of matrices: momentum made orthogonal. Matrices of one shape take a step together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from ..runtime.device import cpu_has_bf16

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the Newton-Schulz iteration
ITERATIONS = 5
EPS = 1e-7  # no norm is taken to be smaller


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum (Jordan et al., kellerjordan.github.io/posts/muon), scaled as AdamW is.

    An update has the size of AdamW's (Liu et al., arXiv 2502.16982, equation 4), so AdamW's learning rate and weight
    decay serve both. The result is that of torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), which takes one matrix
    after another: a GPU waits for its many small launches, and a small network on a CPU takes twice as long.

    Args:
        groups: dicts with "params", matrices, and what else a group has.

    Attributes:
        found_inf: float32, scalar, on the device of the weights; where it is not 0, a step changes nothing.
    """

    found_inf: torch.Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there; nothing is read back from the device."""
        shapes: dict[torch.Size, list[tuple[torch.Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append((p, group))
        for members in shapes.values():
            self._step(*zip(*members))

    def _step(self, matrices: tuple[torch.Tensor, ...], groups: tuple[dict[str, Any], ...]) -> None:
        """One step of matrices of one shape, each with its group."""
        grads = torch.stack([p.grad for p in matrices])  # type: ignore[misc]
        done = torch.ones((), device=grads.device)  # 0: nothing may change
        if self.found_inf is not None:
            done = (self.found_inf == 0).to(grads.dtype)
            grads = torch.where(done > 0, grads, 0.0)  # what is not finite times 0 is not 0
        for p in matrices:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in matrices]
        momenta = torch.stack(buffers).lerp_(grads, done * (1 - MOMENTUM))
        torch._foreach_copy_(buffers, momenta.unbind())
        size = 0.2 * math.sqrt(max(matrices[0].shape))
        updates = (orthogonalize(grads.lerp_(momenta, MOMENTUM)).to(grads.dtype) * (done * size)).unbind()
        torch._foreach_mul_(updates, [group["lr"] for group in groups])
        decays = torch._foreach_mul(matrices, [group["lr"] * group["weight_decay"] for group in groups])
        torch._foreach_mul_(decays, done)
        torch._foreach_sub_(matrices, decays)
        torch._foreach_sub_(matrices, updates)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices with the same singular vectors, and all singular values near 1 (about 0.7 to 1.2).

    Newton-Schulz iterations in bfloat16, or in float32 on a CPU without instructions for bfloat16.

    Args:
        matrices: float (k, m, n).

    Returns:
        bfloat16 or float32 (k, m, n).
    """
    is_low = matrices.device.type != "cpu" or cpu_has_bf16()
    x = matrices.to(torch.bfloat16 if is_low else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
