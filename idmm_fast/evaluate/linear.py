"""A linear probe: logistic regression on frozen features, with scikit-learn."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def linear_accuracy(train, train_labels, test, test_labels, strength=1.0):
    """Percent of `test` rows (float (m, d)) classified right by a logistic regression fitted to `train` (float (n, d)).

    Features are standardised; `strength` is scikit-learn's C, the inverse of the regularisation.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    probe.fit(train.numpy(), train_labels.numpy())
    return 100.0 * float(probe.score(test.numpy(), test_labels.numpy()))
