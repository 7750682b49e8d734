"""Online softmax over the classes, a tile at a time (Milakov and Gimelshein, arXiv 1805.02867)."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def online_softmax_pass(
    z: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tile: int,
    exp_logits: torch.Tensor | None,
    matmul_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """One pass over the classes.

    On the CPU, where a look at the result is free, m = 0 is tried first: few logits are so large that exp leaves the
    range of float32.

    Args:
        z: float (R, d).
        weight: float (n, d).
        bias: float (n,).
        tile: classes at a time.
        exp_logits: float (R, n) that gets exp(o - m as it was at that tile); None: it is not kept.
        matmul_dtype: type of the products; None: that of z.

    Returns:
        (m (R,); s (R,), the sum of exp(o - m); exp(o - m) W, (R, d); [m as it was at each tile]).
    """
    low_z = cast(z, matmul_dtype)
    if z.device.type == "cpu":
        s, weighted_sum = torch.zeros(z.shape[0], dtype=z.dtype), torch.zeros_like(z)
        for part in tiles(weight.shape[0], tile):
            out = None if exp_logits is None else exp_logits[:, part]
            w = cast(weight[part], matmul_dtype)
            e = logits_of(low_z, w, bias[part], matmul_dtype, out).exp_()
            s += e.sum(1)
            add_product(weighted_sum, e, w, matmul_dtype)
        if bool(((s > 1e-30) & (s < 1e30)).all()):
            zero = torch.zeros_like(s)
            return zero, s, weighted_sum, [zero] * -(-weight.shape[0] // tile)
    acc = torch.promote_types(z.dtype, torch.float32)
    lowest = torch.finfo(acc).min  # finite, since all logits of a tile may be -inf
    m = torch.full((z.shape[0],), lowest, dtype=acc, device=z.device)
    s, weighted_sum = torch.zeros_like(m), torch.zeros(z.shape, dtype=acc, device=z.device)
    m_at_tile = []
    for part in tiles(weight.shape[0], tile):
        out = None if exp_logits is None else exp_logits[:, part]
        w = cast(weight[part], matmul_dtype)
        e = logits_of(low_z, w, bias[part], matmul_dtype, out)
        new_m = torch.maximum(m, e.amax(1))
        e.sub_(new_m[:, None]).exp_()
        rescale = torch.exp(m - new_m)
        s = s * rescale + e.sum(1)
        add_product(weighted_sum.mul_(rescale[:, None]), e, w, matmul_dtype)
        m = new_m
        m_at_tile.append(new_m)
    return m, s, weighted_sum, m_at_tile


def tiles(classes: int, tile: int) -> Iterator[slice]:
    """The classes, a tile at a time."""
    return (slice(first, first + tile) for first in range(0, classes, tile))


def logits_of(
    z: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    matmul_dtype: torch.dtype | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """z W^T + b, written to `out` if there is one."""
    if matmul_dtype is not None:
        product = cast(z, matmul_dtype) @ cast(weight, matmul_dtype).T
        return torch.add(product, bias.to(torch.float32), out=out)
    return torch.addmm(bias, z, weight.T, out=out) if out is not None else torch.addmm(bias, z, weight.T)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, matmul_dtype: torch.dtype | None) -> None:
    """total += a b."""
    if matmul_dtype is None:
        total.addmm_(a, b)
    else:
        total.add_(cast(a, matmul_dtype) @ cast(b, matmul_dtype))


def add_small_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, matmul_dtype: torch.dtype | None) -> None:
    """total += a b, where all of b may be too small for fp16: its largest entry is 1 in the product."""
    if matmul_dtype is not torch.float16:
        add_product(total, a, b, matmul_dtype)
        return
    largest = b.abs().amax().clamp(min=torch.finfo(b.dtype).tiny)
    total.add_((cast(a, matmul_dtype) @ cast(b / largest, matmul_dtype)).to(total.dtype) * largest)


def cast(values: torch.Tensor, matmul_dtype: torch.dtype | None) -> torch.Tensor:
    """`values` in the type of the products."""
    return values if matmul_dtype is None else values.to(matmul_dtype)
