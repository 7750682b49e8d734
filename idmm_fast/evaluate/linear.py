"""A linear probe: logistic regression on frozen features, with scikit-learn."""

from __future__ import annotations

import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

MAX_ITERATIONS = 1000


def linear_accuracy(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    C: float = 1.0,
    minutes: float = float("inf"),
) -> float | None:
    """Fit a logistic regression to the training images, and classify the test images with it.

    Features are standardised. scikit-learn's solver can't be asked the time: one iteration is measured, and as many are
    allowed as there is time for.

    Args:
        train: float (n, d), features of the training images.
        train_labels: int64 (n,).
        test: float (m, d), features of the test images.
        test_labels: int64 (m,).
        C: the inverse of the regularisation, as in scikit-learn.
        minutes: about how long it may take.

    Returns:
        Percent of the test images that are classified right; None if it would take longer.

    Raises:
        ValueError: features that are not finite, or a single class.
    """
    scaler = StandardScaler()
    x, y = scaler.fit_transform(train.numpy()), train_labels.numpy()
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        LogisticRegression(C=C, max_iter=1).fit(x, y)
        seconds = max(time.monotonic() - began, 1e-9)
        allowed = int(min(MAX_ITERATIONS, 60 * minutes / seconds - 1))
        if allowed < 1:
            return None
        probe = LogisticRegression(C=C, max_iter=allowed).fit(x, y)
    if probe.n_iter_.max() >= allowed < MAX_ITERATIONS:
        return None
    return 100.0 * float(probe.score(scaler.transform(test.numpy()), test_labels.numpy()))
