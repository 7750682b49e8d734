"""Steps whose loss or gradients are not finite: they are skipped and counted; too many in a row end the training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..runtime import distributed


class NonFiniteGuard:
    """Counts the steps that were skipped since their loss or a gradient was not finite.

    Attributes:
        skipped: number of such steps so far.
        consecutive: number of them in a row until now.
    """

    def __init__(self, max_consecutive: int) -> None:
        self.max_consecutive = max_consecutive
        self.skipped = self.consecutive = 0

    def count(self, bad: float) -> None:
        """Count a step; `bad`: whether it was skipped."""
        self.skipped += bool(bad)
        self.consecutive = self.consecutive + 1 if bad else 0

    def check(self, where: str, loss: float, last: bool, rows: torch.Tensor, path: str) -> None:
        """Raise FloatingPointError if too many steps in a row were skipped.

        Args:
            where: text that names the step.
            loss: its loss.
            last: whether it is the last step of the training. No later one can show that training has recovered, so
                two in a row are too many there at the latest.
            rows: int64 (n,), the dataset rows of its images.
            path: the dataset.
        """
        if self.consecutive < (min(2, self.max_consecutive) if last else self.max_consecutive):
            return
        if math.isfinite(loss):
            what = f"the gradients of a finite loss ({loss:.4g}) were not finite"
        else:
            what = f"the loss became {loss}"
        named = ", ".join(map(str, rows.unique().tolist()[:20]))
        raise FloatingPointError(
            f"{what} at {where}, {self.consecutive} times in a row; the last batch held the rows {named} of {path}. "
            f"The last good checkpoint is kept. Resume from it with training.amp=fp32, or start another run from its "
            f"weights (--init CHECKPOINT --out DIR) with a smaller training.lr."
        )


def loss_and_bad(loss: torch.Tensor, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Look at a step's loss and gradients without waiting for the device.

    What is not finite shows in the largest absolute value, which can't overflow.

    Args:
        loss: float, scalar; this process's part, the loss being the average over the processes.
        parameters: tensors whose `grad` is looked at.

    Returns:
        float32 (2,) on the device: the loss over all processes; and 1 where it or a gradient is not finite in any
        process, else 0.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    largest = torch.nn.utils.get_total_norm(grads, float("inf"), foreach=None) if grads else loss.new_zeros(())
    both = torch.stack([loss.detach().float(), (~torch.isfinite(largest)).float()])
    both = distributed.all_reduce_sum(both)
    return torch.stack([both[0] / distributed.world(), ((both[1] > 0) | ~torch.isfinite(both[0])).float()])
