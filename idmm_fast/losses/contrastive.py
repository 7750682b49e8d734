"""The contrastive loss of SimCLR, SupCon and MoCo v3: a softmax over candidates, with one positive or many."""

import torch


def contrastive_loss(queries, keys, query_ids, key_ids, temperature, own=None):
    """Mean over the queries of  -1/|P(i)| sum_{p in P(i)} log( exp(q_i . k_p / t) / sum_{a in A(i)} exp(q_i . k_a / t) ).

    queries: float (n, d) and keys: float (m, d), of length 1. query_ids, key_ids: int64 (n,) and (m,); P(i) are the keys with the query's id. own:
    int64 (n,), the place of each query itself among the keys, which is then neither a candidate nor a positive; None: they are
    not among them, and A(i) is all keys. With image ids this is NT-Xent (Chen et al., arXiv 2002.05709), with class labels SupCon's L_out (Khosla et
    al., arXiv 2004.11362, equation 2), without its factor of t / 0.07. A query without a positive counts 0. Reduced in float32.
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
