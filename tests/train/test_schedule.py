"""The learning rate over a run."""

import math

import pytest

from idmm_fast.train.optim import learning_rate


def test_schedule_warms_up_from_zero_and_ends_at_zero():
    rates = [learning_rate(s, 100, 10, 1.0) for s in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
