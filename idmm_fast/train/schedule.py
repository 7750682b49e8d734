"""Learning rate: linear warm-up from 0, then cosine to 0, an iteration at a time."""

import math


def learning_rate(step, steps, warmup, peak):
    """The rate at `step` (0 .. steps - 1): peak * step / warmup, then peak * (1 + cos(pi t)) / 2 with t from 0 to 1."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
