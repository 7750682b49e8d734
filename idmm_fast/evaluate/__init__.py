"""Evaluation: nearest neighbours and a linear probe on frozen features, and the accuracy of classifiers."""

from .batches import EvaluationImages
from .features import extract
from .knn import knn_accuracy
from .linear import linear_accuracy

__all__ = ["EvaluationImages", "extract", "knn_accuracy", "linear_accuracy"]
