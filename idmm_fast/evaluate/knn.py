"""Weighted k-nearest-neighbour classification on frozen features, as in DINO (Caron et al., arXiv 2104.14294)."""

from torch.nn.functional import normalize, one_hot


def knn_accuracy(train, train_labels, test, test_labels, ks=(10, 20), temperature=0.07, chunk=1024):
    """{"knn10": ..., "knn20": ...}, percent of `test` rows whose class wins the vote of their k nearest `train` rows.

    train, test: float (n, d) and (m, d); nearness is cosine similarity s, a vote weighs exp(s / temperature).
    *_labels: int64. A k larger than n is cut to n.
    """
    train, test = normalize(train.float(), dim=1), normalize(test.float(), dim=1)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    votes_of = one_hot(train_labels, classes).float()
    right = dict.fromkeys(ks, 0)
    for rows, wanted in zip(test.split(chunk), test_labels.split(chunk)):
        similarity, nearest = (rows @ train.T).topk(min(max(ks), train.shape[0]), dim=1)
        weights = (similarity / temperature).exp().unsqueeze(2)
        for k in ks:
            votes = (weights[:, :k] * votes_of[nearest[:, :k]]).sum(1)
            right[k] += int((votes.argmax(1) == wanted).sum())
    return {f"knn{k}": 100.0 * right[k] / test.shape[0] for k in ks}
