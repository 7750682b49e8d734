"""Weighted k-nearest-neighbour classification on frozen features, as in DINO (Caron et al., arXiv 2104.14294)."""

import torch
from torch.nn.functional import normalize


def _nearest(rows, train, k, chunk):
    """(similarities, row numbers) of the k nearest rows of `train`, nearest first, for each of `rows`."""
    best, at = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for first in range(0, len(train), chunk):
        similarity, place = (rows @ train[first : first + chunk].T).topk(min(k, len(train) - first, chunk), dim=1)
        best, kept = torch.cat([best, similarity], 1).topk(min(k, best.shape[1] + similarity.shape[1]), dim=1)
        at = torch.cat([at, place + first], 1).gather(1, kept)
    return best, at


def knn_accuracy(
    train, train_labels, test, test_labels, ks=(10, 20), temperature=0.07, chunk=1024, train_chunk=1 << 16
):
    """{"knn10": ..., "knn20": ...}, percent of `test` rows whose class wins the vote of their k nearest `train` rows.

    train, test: float (n, d) and (m, d); nearness is cosine similarity s, a vote weighs exp(s / temperature). *_labels:
    int64. A k larger than n is cut to n. `chunk` test rows are compared with `train_chunk` training rows at a time, which
    bounds the memory. Raises ValueError where features are not finite.
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
    for rows, wanted in zip(test.split(chunk), test_labels.split(chunk)):
        similarity, nearest = _nearest(rows, train, min(max(ks), len(train)), train_chunk)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # of the nearest 1: nothing overflows
        for k in ks:
            votes = weights.new_zeros(len(rows), classes).scatter_add_(1, train_labels[nearest[:, :k]], weights[:, :k])
            right[k] += int((votes.argmax(1) == wanted).sum())
    return {f"knn{k}": 100.0 * right[k] / test.shape[0] for k in ks}
