"""Weighted k-nearest-neighbour classification on frozen features, as in DINO (Caron et al., arXiv 2104.14294)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize


def knn_accuracy(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    chunks: tuple[int, int] = (1024, 1 << 16),
) -> dict[str, float]:
    """Classify each test image by the vote of its nearest training images.

    Nearness is cosine similarity s; a vote weighs exp(s / temperature).

    Args:
        train: float (n, d), features of the training images.
        train_labels: int64 (n,).
        test: float (m, d), features of the test images.
        test_labels: int64 (m,).
        ks: how many neighbours vote; a k above n is cut to n.
        temperature: of the votes.
        chunks: (test images, training images) that are compared at a time, which bounds the memory.

    Returns:
        {"knn10": ..., "knn20": ...}: percent of the test images that are classified right.

    Raises:
        ValueError: features are not finite.
    """
    for name, features in (("training", train), ("test", test)):
        bad = int((~features.isfinite().all(1)).sum())
        if bad:
            raise ValueError(
                f"the features of {bad} of {len(features)} {name} images are not finite; the weights are spoilt"
            )
    train, test = normalize(train.float(), dim=1), normalize(test.float(), dim=1)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    right = dict.fromkeys(ks, 0)
    for rows, wanted in zip(test.split(chunks[0]), test_labels.split(chunks[0])):
        similarity, nearest = _nearest(rows, train, min(max(ks), len(train)), chunks[1])
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # of the nearest 1: nothing overflows
        for k in ks:
            votes = weights.new_zeros(len(rows), classes).scatter_add_(1, train_labels[nearest[:, :k]], weights[:, :k])
            right[k] += int((votes.argmax(1) == wanted).sum())
    return {f"knn{k}": 100.0 * right[k] / test.shape[0] for k in ks}


def _nearest(rows: torch.Tensor, train: torch.Tensor, k: int, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(similarities, row numbers) of the k nearest rows of `train`, nearest first, for each of `rows`."""
    best, at = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for first in range(0, len(train), chunk):
        similarity, place = (rows @ train[first : first + chunk].T).topk(min(k, len(train) - first, chunk), dim=1)
        best, kept = torch.cat([best, similarity], 1).topk(min(k, best.shape[1] + similarity.shape[1]), dim=1)
        at = torch.cat([at, place + first], 1).gather(1, kept)
    return best, at
