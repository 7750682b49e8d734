"""What changes an iteration at a time. Learning rate: linear warm-up from 0, then cosine to 0."""

import math


def learning_rate(step, steps, warmup, peak):
    """The rate at `step` (0 .. steps - 1): peak * step / warmup, then peak * (1 + cos(pi t)) / 2 with t from 0 to 1."""
    if step < warmup:
        return peak * step / warmup
    return cosine(step - warmup, max(1, steps - warmup), peak, 0.0)


def cosine(step, steps, first, last):
    """From `first` at step 0 to `last` at `steps`, along half a cosine."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
