"""Mixup's random numbers."""

import numpy as np

from idmm_fast.loader.cutmix import sample_mixup


def test_mixup_lam_follows_the_beta_distribution():
    samples = [sample_mixup(3, 0, step, 10, 0.5) for step in range(4000)]
    lams = np.array([s for s, _ in samples])
    assert lams.min() >= 0.5
    from scipy import stats

    assert stats.kstest(lams, lambda x: 2 * (stats.beta(0.5, 0.5).cdf(x) - 0.5)).pvalue > 1e-3
    assert all(sorted(p) == list(range(10)) for _, p in samples[:50])
