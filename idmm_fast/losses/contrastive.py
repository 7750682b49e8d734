"""The contrastive loss of SimCLR, SupCon and MoCo v3: a softmax over candidates, with one positive or many."""

from __future__ import annotations

import torch


def contrastive_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    query_ids: torch.Tensor,
    key_ids: torch.Tensor,
    temperature: float,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each query's mean log-probability of its positives, negated, and the mean of that over the queries.

        L = mean_i -1/|P(i)| sum_{p in P(i)} log( exp(q_i . k_p / t) / sum_{a in A(i)} exp(q_i . k_a / t) )

    P(i) are the keys with the query's id, A(i) all keys. With image ids this is NT-Xent (Chen et al., arXiv
    2002.05709), with class labels SupCon's L_out (Khosla et al., arXiv 2004.11362, equation 2) without its factor of
    t / 0.07. A query without a positive counts 0.

    Args:
        queries: float (n, d), of length 1.
        keys: float (m, d), of length 1.
        query_ids: int64 (n,).
        key_ids: int64 (m,).
        temperature: t, above 0.
        own: int64 (n,), the place of each query among the keys, where it is neither a candidate nor a positive; None:
            the queries are not among the keys.

    Returns:
        float32, scalar.
    """
    with torch.autocast(queries.device.type, enabled=False):
        similarity = queries.float() @ keys.float().T / temperature
    positive = query_ids.unsqueeze(1) == key_ids.unsqueeze(0)
    if own is not None:
        itself = torch.arange(keys.shape[0], device=keys.device).unsqueeze(0) == own.unsqueeze(1)
        positive = positive & ~itself
        similarity = similarity.masked_fill(itself, -torch.inf)
    count = positive.sum(1)
    aligned = similarity.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, similarity.logsumexp(1) - aligned, 0.0).mean()
