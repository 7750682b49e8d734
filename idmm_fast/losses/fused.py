"""Head and instance loss in one, for so many instances that their logits do not fit: B x N is never held.

With o = z W^T + b, s the sum of exp(o) of a row and m any bound near its maximum,

    L     = m + log s - (1 - eps) (lam o_a + (1 - lam) o_b) - eps mean_c(o_c)
    dL/dz = (exp(o - m) / s) W - (1 - eps) (lam w_a + (1 - lam) w_b) - eps mean_c(w_c)
    dL/dW = (exp(o - m) / s)^T z - ...,  the same with z in the place of the rows a, b, and all

so one pass over the classes, a tile that fits the cache at a time, gives the loss and dL/dz together (both are sums that are
rescaled when the maximum grows, as in online softmax, Milakov and Gimelshein, arXiv 1805.02867); dL/dW needs the final
s. For that either exp(o - m) was kept for as many rows as the memory bound allows, three products of matrices in all, as in the
dense form; or, where not even a few rows fit, it is made again, four.
Gradients are made in the forward pass, since training always wants them.

A process may hold a slice of the classes only (`group`): features and targets are then those of all processes, and m, s, o_a, o_b and
dL/dz are combined over the group.
"""

import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .instance import check_targets, weighed

MEMORY = 768 << 20  # bytes of scratch, beyond weights and gradients
_TILE = 1 << 18  # logits of a tile: 1 MB, which the cache holds beside the weights it is made from


@dataclass
class Shard:
    """The slice of the classes that this process holds: rows first .. first + W.shape[0] - 1 of `total`."""

    first: int
    total: int
    group: object = None

    @property
    def alone(self):
        return self.group is None


def _reduce(tensor, shard, op):
    if not shard.alone:
        dist.all_reduce(tensor, op, group=shard.group)
    return tensor


def _rows_that_fit(batch, classes, memory):
    """How many rows of exp(o) may be kept, in equal parts of the batch; 0 where so few fit that making them again is better."""
    fit = memory // (4 * max(classes, 1))
    if fit < min(batch, 32):
        return 0
    parts = -(-batch // min(fit, batch))
    return -(-batch // parts)


_scratch = {}  # device -> memory for exp(o), kept from step to step: the system takes as long to hand out fresh pages as a product takes


def _keep(rows, classes, dtype, device):
    held = _scratch.get(device)
    if held is None or held.numel() < rows * classes or held.dtype != dtype:
        _scratch[device] = held = torch.empty(rows * classes, dtype=dtype, device=device)
    return held[: rows * classes].view(rows, classes)


_gradients = {}  # (rows, columns, dtype) -> the memory of the last step's gradient, for the same reason


def _gradient(rows, columns, dtype, device):
    """An uninitialised (rows, columns); on the CPU in the memory of the step before, once nobody holds that step's gradient."""
    if device.type != "cpu":  # CUDA's allocator keeps memory by itself
        return torch.empty(rows, columns, dtype=dtype, device=device)
    key = rows, columns, dtype
    if (
        key not in _gradients or sys.getrefcount(_gradients[key]) > 2
    ):  # the table and the call; every tensor on it counts
        _gradients.clear()
        _gradients[key] = torch.empty(rows, columns, dtype=dtype).numpy()
    return torch.from_numpy(_gradients[key])


def _scan(z, weight, bias, tile, kept, low):
    """One pass over the classes for the rows `z` (R, d): (m, s, exp(o - m) W, [m as it was at each tile]).

    kept: float32 (R, N) that gets exp(o - m as it was at that tile), or None. low: dtype of the products, or None for z's own.
    On the CPU, where a look at the result is free, m = 0 is tried first: few logits are so large that exp leaves float32.
    """
    if z.device.type == "cpu":
        s, pull = torch.zeros(z.shape[0], dtype=z.dtype), torch.zeros_like(z)
        for first in range(0, weight.shape[0], tile):
            part = slice(first, first + tile)
            e = _logits(z, weight[part], bias[part], low, None if kept is None else kept[:, part]).exp_()
            s += e.sum(1)
            _add_product(pull, e, weight[part], low)
        if bool(((s > 1e-30) & (s < 1e30)).all()):
            zero = torch.zeros_like(s)
            return zero, s, pull, [zero] * -(-weight.shape[0] // tile)
    acc = torch.promote_types(z.dtype, torch.float32)
    m = torch.full(
        (z.shape[0],), torch.finfo(acc).min, dtype=acc, device=z.device
    )  # finite, since all logits of a tile may be -inf
    s, pull = torch.zeros_like(m), torch.zeros(z.shape, dtype=acc, device=z.device)
    at_tile = []
    for first in range(0, weight.shape[0], tile):
        part = slice(first, first + tile)
        e = _logits(z, weight[part], bias[part], low, None if kept is None else kept[:, part])
        new = torch.maximum(m, e.amax(1))
        e.sub_(new[:, None]).exp_()
        old = torch.exp(m - new)
        s = s * old + e.sum(1)
        _add_product(pull.mul_(old[:, None]), e, weight[part], low)
        m = new
        at_tile.append(new)
    return m, s, pull, at_tile


def _add_product(total, a, b, low):
    if low is None:
        total.addmm_(a, b)
    else:
        total.add_(a.to(low) @ b.to(low))


def _logits(z, weight, bias, low, out):
    if low is not None:
        result = torch.add(z.to(low) @ weight.to(low).T, bias.to(torch.float32))
        return result if out is None else out.copy_(result)
    return torch.addmm(bias, z, weight.T, out=out) if out is not None else torch.addmm(bias, z, weight.T)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, idx_a, idx_b, lam, eps, row_weight, memory, shard, offset, low):
        wants = any(ctx.needs_input_grad[:3])
        classes, batch, d = weight.shape[0], features.shape[0], features.shape[1]
        acc = torch.promote_types(weight.dtype, torch.float32)
        z_all = features.to(acc)
        shifted = bias if offset is None else bias + offset
        losses = torch.empty(batch, dtype=acc, device=z_all.device)
        mean_w, mean_b = (
            _reduce(v.sum(0) / shard.total, shard, dist.ReduceOp.SUM)
            for v in (_weighted(weight, offset), _weighted(bias, offset))
        )
        rows = _rows_that_fit(batch, classes, memory) if wants else 0
        step = rows or batch
        tile = max(256, _TILE // step)
        kept = _keep(rows + 1, classes, acc, z_all.device) if rows else None
        joined = (
            rows and low is None and offset is None
        )  # a row of ones in `kept` makes smoothing's part within the product
        if joined:
            kept[rows] = 1
        d_z = torch.empty_like(z_all) if wants else None
        d_w = None
        uniform = (row_weight @ z_all) * (-eps / shard.total)  # of every class alike: smoothing
        for first in range(0, batch, step):
            part = slice(first, first + step)
            z, share, counts = z_all[part], lam[part], row_weight[part]
            local = kept[: z.shape[0]] if rows else None
            m, s, pull, at_tile = _scan(z, weight, shifted, tile, local, low)
            if not shard.alone:
                top = _reduce(m.clone(), shard, dist.ReduceOp.MAX)
                pull.mul_(torch.exp(m - top)[:, None])
                s, m = s * torch.exp(m - top), top
                both = _reduce(torch.cat([s[:, None], pull], 1), shard, dist.ReduceOp.SUM)
                s, pull = both[:, 0], both[:, 1:]
            wanted = _Targets(z, weight, bias, idx_a[part], idx_b[part], share, eps, shard)
            losses[part] = m + s.log() - wanted.logits - (eps * (z @ mean_w + mean_b) if eps else 0.0)
            if not wants:
                continue
            d_z[part] = (pull / s[:, None] - wanted.weights - eps * mean_w) * counts[:, None]
            begun = d_w is not None
            if not begun:
                d_w = _gradient(classes, d, acc, z.device)
                d_b = row_weight.sum() * torch.full((classes,), -eps / shard.total, dtype=acc, device=z.device)
                d_b = d_b if offset is None else d_b * _ratio(offset)
            for k, start in enumerate(range(0, classes, tile)):
                block = slice(start, start + tile)
                if rows:
                    e = local[:, block]
                    scale = torch.exp(at_tile[k] - m) / s * counts
                else:
                    e = _logits(z, weight[block], shifted[block], low, None).sub_(m[:, None]).exp_()
                    scale = counts / s
                if joined and not begun:
                    torch.mm(kept[:, block].T, torch.cat([z * scale[:, None], uniform[None]]), out=d_w[block])
                else:
                    if not begun:  # smoothing's part first; the products are added to it
                        d_w[block] = uniform if offset is None else uniform * _ratio(offset[block])[:, None]
                    _add_product(d_w[block], e.T, z * scale[:, None], low)
                d_b[block].addmv_(e.T, scale)
            wanted.add_to(d_w, d_b, z, counts)
        if wants:
            ctx.save_for_backward(d_z.to(features.dtype), d_w, d_b)
        ctx.mark_non_differentiable(losses)
        return row_weight @ losses.masked_fill(row_weight == 0, 0.0), losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        grads = ctx.saved_tensors
        if (
            grad.device.type != "cpu" or grad.item() != 1
        ):  # on the CPU a look is free, and scaling by 1 a pass over N x d numbers
            grads = [g * grad for g in grads]
        return (*grads, *[None] * 9)


def _ratio(offset):
    return offset.exp()


def _weighted(values, offset):
    if offset is None:
        return values
    return values * (_ratio(offset)[:, None] if values.dim() == 2 else _ratio(offset))


class _Targets:
    """What the rows' own classes contribute: (1 - eps) times lam of a and 1 - lam of b, wherever these classes are held."""

    def __init__(self, z, weight, bias, idx_a, idx_b, share, eps, shard):
        self.parts = []
        self.weights = torch.zeros_like(z)
        for idx, part in ((idx_a, share), (idx_b, 1 - share)) if weight.shape[0] else ():  # a slice may be empty
            here = (idx >= shard.first) & (idx < shard.first + weight.shape[0])
            local = torch.where(here, idx - shard.first, 0)
            part = (1 - eps) * part.to(z.dtype) * here
            self.parts.append((local, part))
            self.weights += part[:, None] * weight[local]
        self.logits = (z * self.weights).sum(1) + sum(weighed(part, bias[local]) for local, part in self.parts)
        if not shard.alone:
            both = _reduce(torch.cat([self.logits[:, None], self.weights], 1), shard, dist.ReduceOp.SUM)
            self.logits, self.weights = both[:, 0], both[:, 1:]

    def add_to(self, d_w, d_b, z, counts):
        for local, part in self.parts:
            d_w.index_add_(0, local, z * (-part * counts)[:, None])
            d_b.index_add_(0, local, -part * counts)


@torch.compiler.disable
def fused_instance_loss(
    features,
    weight,
    bias,
    idx_a,
    idx_b,
    lam,
    eps,
    reduction="mean",
    *,
    row_weight=None,
    memory=MEMORY,
    shard=None,
    offset=None,
):
    """`instance_loss(features @ weight.T + bias, ...)` with all gradients, and never the logits of the whole batch.

    features: float (B, d). weight: float (N, d), bias: float (N,), N instances. idx_a, idx_b, lam, eps: as for instance_loss.
    memory: bytes of scratch, beyond weights and gradients. reduction: "mean", or "none" for the rows' losses (B,) without
    gradients. row_weight: float (B,), what a row counts in the sum instead of 1 / B each.
    Sums are made in float32 (float64 for float64); under autocast the products are in autocast's type. Equal to the dense
    form to 1e-6 in float64 and 1e-4 in float32, relative; in bf16 to a few thousandths. Raises ValueError.

    shard: with the classes spread over processes, which slice this one holds (Shard); features and targets must be the same on
    all of them, and so is the result. Then N is weight.shape[0] here, shard.total in all. offset: float (N,), added to the
    logits of classes that stand for exp(offset) others (see head.sample_rate).
    """
    shard = shard or Shard(0, weight.shape[0])
    if (
        features.dim() != 2
        or weight.dim() != 2
        or features.shape[1] != weight.shape[1]
        or bias.shape != weight.shape[:1]
    ):
        raise ValueError(
            f"features (B, d), weight (N, d) and bias (N,) do not fit: {tuple(features.shape)}, {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    check_targets(features.shape[0], shard.total, idx_a, idx_b, lam, eps, features.device)
    return fused(features, weight, bias, idx_a, idx_b, lam, eps, reduction, row_weight, memory, shard, offset)


def fused(features, weight, bias, idx_a, idx_b, lam, eps, reduction, row_weight, memory, shard, offset):
    """`fused_instance_loss` without its checks: an index outside of this process's slice is one that another holds."""
    rows, acc = features.shape[0], torch.promote_types(weight.dtype, torch.float32)
    lam = torch.as_tensor(lam, dtype=acc, device=features.device).expand(rows)
    row_weight = (
        torch.full((rows,), 1 / max(rows, 1), dtype=acc, device=features.device)
        if row_weight is None
        else row_weight.to(acc)
    )
    low = torch.get_autocast_dtype(features.device.type) if torch.is_autocast_enabled(features.device.type) else None
    with torch.autocast(features.device.type, enabled=False):
        mean, losses = _Fused.apply(
            features, weight, bias, idx_a, idx_b, lam, eps, row_weight, memory, shard, offset, low
        )
    return mean if reduction == "mean" else losses
