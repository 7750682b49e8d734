"""Seconds of the instance loss, forward and backward, of the fused form and of sparse targets.

The fused form is measured against the matrix products of the dense path, sparse targets (indices) against dense ones.

  products  the three matrix products of the dense path alone: z W^T, G W, G^T z, with G of B x N at hand
  fused     fused_instance_loss, everything
  index     instance_loss on logits of B x 2,040
  targets   torch's cross_entropy on dense soft targets that are made for the step, as the reference implementation does

Random inputs in float32 on the CPU; B, d and N are options, by default 256, 192 and ImageNet's 1,281,167. The systems
take turns, medians of `--repeats` rounds. Memory is the growth of the process's peak during one fused step, less the
gradients.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..files import write_json
from ..losses import fused_instance_loss, instance_loss
from .machine import describe_machine
from .rounds import median_min_max, time_rounds


def _reset_peak() -> None:
    """Forget the peak memory of this process (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_mb(key: str) -> float:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _measure_fused(batch: int, d: int, classes: int, repeats: int) -> dict[str, Any]:
    """The fused loss against the dense path's products."""
    torch.manual_seed(0)
    z, weight, bias = (
        torch.randn(batch, d, requires_grad=True),
        (0.02 * torch.randn(classes, d)).requires_grad_(),
        torch.zeros(classes, requires_grad=True),
    )
    a, b, lam = torch.randint(0, classes, (batch,)), torch.randint(0, classes, (batch,)), torch.rand(batch)

    def fused() -> None:
        for parameter in (z, weight, bias):
            parameter.grad = None
        fused_instance_loss(z, weight, bias, a, b, lam, 0.1).backward()

    with torch.no_grad():  # what the first use of a library loads is no memory of a step
        fused_instance_loss(z[:8], weight[:999], bias[:999], a[:8] % 999, b[:8] % 999, lam[:8], 0.1)
    _reset_peak()
    before = _status_mb("VmRSS")
    fused()
    memory = _status_mb("VmHWM") - before - (weight.numel() + bias.numel()) * 4 / 2**20
    logits, d_z, d_w = torch.empty(batch, classes), torch.empty(batch, d), torch.empty(classes, d)

    @torch.no_grad()
    def products() -> None:
        torch.mm(z, weight.T, out=logits)
        torch.mm(logits, weight, out=d_z)
        torch.mm(logits.T, z, out=d_w)

    times = time_rounds({"products": products, "fused": fused}, repeats)
    seconds = {name: median_min_max(t) for name, t in times.items()}
    return {
        "batch": batch,
        "d": d,
        "classes": classes,
        "seconds": seconds,
        "peak_mb": memory,
        "dense_logits_mb": batch * classes * 4 / 2**20,
        "fused / products": seconds["fused"]["median"] / seconds["products"]["median"],
    }


def _measure_index(batch: int, classes: int, repeats: int) -> dict[str, Any]:
    """Sparse against dense targets."""
    torch.manual_seed(0)
    logits = torch.randn(batch, classes, requires_grad=True)
    a, b, lam = torch.randint(0, classes, (batch,)), torch.randint(0, classes, (batch,)), torch.rand(batch)

    def index() -> None:
        logits.grad = None
        instance_loss(logits, a, b, lam, 0.1).backward()

    def targets() -> None:
        logits.grad = None
        target = torch.full((batch, classes), 0.1 / classes)
        target.scatter_add_(1, a[:, None], 0.9 * lam[:, None])
        target.scatter_add_(1, b[:, None], 0.9 * (1 - lam[:, None]))
        cross_entropy(logits, target).backward()

    times = time_rounds({"index": index, "targets": targets}, 20 * repeats)
    seconds = {name: median_min_max(t) for name, t in times.items()}
    return {
        "batch": batch,
        "classes": classes,
        "seconds": seconds,
        "targets / index": seconds["targets"]["median"] / seconds["index"]["median"],
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py loss --help`."""
    fused = _measure_fused(args.batch, args.dim, args.classes, args.repeats)
    index = _measure_index(1536, 2040, args.repeats)
    threads = torch.get_num_threads()
    print(
        f"B = {args.batch}, d = {args.dim}, N = {args.classes:,}, forward and backward, {threads} threads, "
        f"medians of {args.repeats}"
    )
    print(
        f"fused / three products of the dense path: {fused['fused / products']:.2f} "
        f"({fused['seconds']['fused']['median']:.2f} s against {fused['seconds']['products']['median']:.2f} s)"
    )
    print(
        f"peak memory beyond weights and gradients: {fused['peak_mb']:.0f} MB "
        f"(dense logits alone: {fused['dense_logits_mb']:.0f} MB)"
    )
    print(
        f"B = 1,536, N = 2,040: dense targets / sparse targets: {index['targets / index']:.2f} "
        f"({1e3 * index['seconds']['targets']['median']:.1f} ms against "
        f"{1e3 * index['seconds']['index']['median']:.1f} ms)"
    )
    result = {"fused": fused, "index": index, "threads": threads, "machine": describe_machine()}
    if args.json:
        write_json(args.json, result)
    return result
