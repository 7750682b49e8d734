"""The counter-based generator: the published answers, and the statistics that the augmentations rely on."""

import numpy as np
import pytest
from scipy import stats

from idmm_fast.kernels.philox import permutation, philox, uniforms


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [  # Random123's known-answer tests for philox4x32-10
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(key, counter, answer):
    assert philox(np.uint64(key[0] | key[1] << 32), *counter) == answer


def _draws(**fixed):
    counter = {"row": np.zeros(25_000, int), "epoch": np.zeros(25_000, int), "stream": np.zeros(25_000, int)}
    counter |= {k: np.arange(25_000) for k in fixed}
    return np.array([uniforms(np.uint64(3), r, e, s, 0) for r, e, s in zip(*counter.values())])


@pytest.mark.parametrize("along", ["row", "epoch", "stream"])
def test_draws_are_uniform_and_neighbours_uncorrelated(along):
    u = _draws(**{along: True})
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for column in u.T:  # lag 1 to 5 along rows, epochs or crops: |r| < 4.5 standard errors
        for lag in range(1, 6):
            assert abs(np.corrcoef(column[:-lag], column[lag:])[0, 1]) < 4.5 / np.sqrt(column.size)
    corr = np.corrcoef(u.T) - np.eye(4)
    assert np.abs(corr).max() < 4.5 / np.sqrt(u.shape[0])


def test_permutations_are_uniform():
    counts = {}
    for epoch in range(24_000):
        p = tuple(permutation(np.uint64(5), 0, epoch, 9, 4))
        counts[p] = counts.get(p, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_permutation_holds_every_element_once():
    assert sorted(permutation(np.uint64(1), 2, 3, 4, 1001)) == list(range(1001))
