"""The instance loss, forward and backward: the fused form against the dense path's products, the index form against dense targets.

  products   the three matrix products of the dense path alone: z W^T, G W, G^T z, with G of B x N at hand
  fused      fused_instance_loss, everything
  index      instance_loss on logits of B x 2,040
  targets    torch's cross_entropy on dense soft targets that are made for the step, as the published code does
Memory is the growth of the process's peak during one fused step, less the gradients.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..losses import fused_instance_loss, instance_loss
from .loader import machine


def _reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def _status(key):
    return next(
        int(l.split()[1]) / 1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key)
    )


def _in_turn(systems, repeats):
    times = {name: [] for name in systems}
    for function in systems.values():
        function()
    for _ in tqdm(range(repeats), desc="rounds"):
        for name, function in systems.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: {"median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in times.items()}


def _fused(batch, d, classes, repeats):
    torch.manual_seed(0)
    z, weight, bias = (
        torch.randn(batch, d, requires_grad=True),
        (0.02 * torch.randn(classes, d)).requires_grad_(),
        torch.zeros(classes, requires_grad=True),
    )
    a, b, lam = torch.randint(0, classes, (batch,)), torch.randint(0, classes, (batch,)), torch.rand(batch)

    def fused():
        for parameter in (z, weight, bias):
            parameter.grad = None
        fused_instance_loss(z, weight, bias, a, b, lam, 0.1).backward()

    with torch.no_grad():  # what the first use of a library brings in is no memory of a step
        fused_instance_loss(z[:8], weight[:999], bias[:999], a[:8] % 999, b[:8] % 999, lam[:8], 0.1)
    _reset_peak()
    before = _status("VmRSS")
    fused()
    memory = _status("VmHWM") - before - (weight.numel() + bias.numel()) * 4 / 2**20
    logits, d_z, d_w = torch.empty(batch, classes), torch.empty(batch, d), torch.empty(classes, d)

    @torch.no_grad()
    def products():
        torch.mm(z, weight.T, out=logits)
        torch.mm(logits, weight, out=d_z)
        torch.mm(logits.T, z, out=d_w)

    seconds = _in_turn({"products": products, "fused": fused}, repeats)
    return {
        "batch": batch,
        "d": d,
        "classes": classes,
        "seconds": seconds,
        "peak_mb": memory,
        "dense_logits_mb": batch * classes * 4 / 2**20,
        "fused / products": seconds["fused"]["median"] / seconds["products"]["median"],
    }


def _index(batch, classes, repeats):
    torch.manual_seed(0)
    logits = torch.randn(batch, classes, requires_grad=True)
    a, b, lam = torch.randint(0, classes, (batch,)), torch.randint(0, classes, (batch,)), torch.rand(batch)

    def index():
        logits.grad = None
        instance_loss(logits, a, b, lam, 0.1).backward()

    def targets():
        logits.grad = None
        target = torch.full((batch, classes), 0.1 / classes)
        target.scatter_add_(1, a[:, None], 0.9 * lam[:, None])
        target.scatter_add_(1, b[:, None], 0.9 * (1 - lam[:, None]))
        cross_entropy(logits, target).backward()

    seconds = _in_turn({"index": index, "targets": targets}, 20 * repeats)
    return {
        "batch": batch,
        "classes": classes,
        "seconds": seconds,
        "targets / index": seconds["targets"]["median"] / seconds["index"]["median"],
    }


def run(args):
    """Measure and print; see `benchmark.py loss --help`."""
    fused = _fused(args.batch, args.dim, args.classes, args.repeats)
    index = _index(1536, 2040, args.repeats)
    result = {"fused": fused, "index": index, "threads": torch.get_num_threads(), "machine": machine()}
    print(
        f"B = {args.batch}, d = {args.dim}, N = {args.classes:,}, forward and backward, {torch.get_num_threads()} threads, medians of {args.repeats}"
    )
    print(
        f"fused / three products of the dense path: {fused['fused / products']:.2f} "
        f"({fused['seconds']['fused']['median']:.2f} s against {fused['seconds']['products']['median']:.2f} s)"
    )
    print(
        f"peak memory beyond weights and gradients: {fused['peak_mb']:.0f} MB (dense logits alone: {fused['dense_logits_mb']:.0f} MB)"
    )
    print(
        f"B = 1,536, N = 2,040: dense targets / index form: {index['targets / index']:.2f} "
        f"({1e3 * index['seconds']['targets']['median']:.1f} ms against {1e3 * index['seconds']['index']['median']:.1f} ms)"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result
