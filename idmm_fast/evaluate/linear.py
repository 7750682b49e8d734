"""A linear probe: logistic regression on frozen features, with scikit-learn."""

import time
import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

ITERATIONS = 1000


def linear_accuracy(train, train_labels, test, test_labels, strength=1.0, minutes=float("inf")):
    """Percent of `test` rows (float (m, d)) classified right by a logistic regression fitted to `train` (float (n, d)); None
    if that would take more than about so many `minutes`.

    Features are standardised; `strength` is scikit-learn's C, the inverse of the regularisation. Its solver can't be asked
    the time: one iteration is measured, and as many are made as there is time for. Raises ValueError, also of one class.
    """
    scaler = StandardScaler()
    x, y = scaler.fit_transform(train.numpy()), train_labels.numpy()
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        LogisticRegression(C=strength, max_iter=1).fit(x, y)
        one = max(time.monotonic() - began, 1e-9)
        allowed = int(min(ITERATIONS, 60 * minutes / one - 1))
        if allowed < 1:
            return None
        probe = LogisticRegression(C=strength, max_iter=allowed).fit(x, y)
    if probe.n_iter_.max() >= allowed < ITERATIONS:
        return None
    return 100.0 * float(probe.score(scaler.transform(test.numpy()), test_labels.numpy()))
