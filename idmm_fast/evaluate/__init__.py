"""Judging frozen features: nearest neighbours, a linear probe, and a picture to look at."""

from .features import extract
from .knn import knn_accuracy
from .linear import linear_accuracy
from .neighbours import draw_neighbours

__all__ = ["draw_neighbours", "extract", "knn_accuracy", "linear_accuracy"]
