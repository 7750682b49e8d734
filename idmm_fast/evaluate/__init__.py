"""Judging frozen features: nearest neighbours, a linear probe, and a picture to look at."""

from ..plots.neighbours import plot_neighbours
from .features import extract
from .knn import knn_accuracy
from .linear import linear_accuracy

__all__ = ["extract", "knn_accuracy", "linear_accuracy", "plot_neighbours"]
