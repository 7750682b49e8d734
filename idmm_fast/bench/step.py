"""A training step, from the published one to ours, one switch after another: crops/s, the arithmetic of the model, and its share of what the
machine can multiply.

  published     eager float32, a forward pass for each group of views (2 B and 4 B crops), targets of B x N made for the step
  + index loss  the loss from idx_a, idx_b, lam
  + one pass    the 6 B crops together
  + channels-last, + bf16 (fp16 on a GPU without it; not on a CPU without it, which only pretends to have it), + plain attention (on a CPU, where the
    sequence is short enough for it: train/device.py), + compile, each on top of those before it

Batches are synthetic and already on the device: loading is not what is measured here (`benchmark.py end_to_end` does). The systems take turns
in each round. FLOP are counted by torch on the step of the published form, so they are the model's, whoever computes them; the machine's rate is that of the
best of a few sizes of torch.mm, in float32 and in the lower precision, measured in each round too.
"""

import functools
import json
import statistics
import time

import torch
from torch.nn.functional import log_softmax
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..methods import IDMM
from ..models import create_backbone
from ..models.normalize import PRETRAIN_STD
from ..runtime.device import Runtime, choose_attention, cpu_has_bf16
from .loader import machine as describe


def batch_of(images, instances, size, device, seed=0):
    """The groups of a step, as lists (images, idx_a, idx_b, lam): 2 and 4 views of `images` random images of `size` pixels."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for views in (2, 4):
        rows = views * images
        pixels = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=generator)
        a = torch.arange(images).repeat(views) % instances
        b = a[torch.randperm(rows, generator=generator)]
        lam = torch.full((rows,), 0.9)
        groups.append([t.to(device) for t in (pixels.contiguous(memory_format=torch.channels_last), a, b, lam)])
    return [list(part) for part in zip(*groups)]


class Published(torch.nn.Module):
    """The step as it was published: normalised pixels, group by group, cross entropy with dense soft targets."""

    def __init__(self, model, instances, smoothing=0.1, index=False):
        super().__init__()
        self.model, self.instances, self.smoothing, self.index = model, instances, smoothing, index
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PRETRAIN_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images, idx_a, idx_b, lam):
        if self.index:
            return sum(self.model(*([part] for part in group)) for group in zip(images, idx_a, idx_b, lam))
        loss = 0.0
        for x, a, b, share in zip(images, idx_a, idx_b, lam):
            x = (x.float().contiguous() / 255 - self.mean) / self.std
            logits = self.model.head(self.model.backbone(x))
            target = torch.full_like(logits, self.smoothing / self.instances)
            target.scatter_add_(1, a[:, None], ((1 - self.smoothing) * share)[:, None])
            target.scatter_add_(1, b[:, None], ((1 - self.smoothing) * (1 - share))[:, None])
            loss = loss - (target * log_softmax(logits, 1)).sum(1).mean()
        return loss


def systems(name, size, instances, device, low, options=None):
    """{what: (module to call, Machine)}, each switch on top of those before it."""
    plain = Runtime(device, None, False, False)
    last = Runtime(device, None, True, False)
    found = {}

    def add(what, machine, wrap=None, plain_attention=False):
        torch.manual_seed(0)
        model = machine.to_device(IDMM(create_backbone(name, size, 0.1, options), instances, 0.1)).train()
        if plain_attention:
            choose_attention(model, machine)
        found[what] = (machine.prepare(wrap(model).to(device) if wrap else model), model, machine)

    add("published", plain, lambda m: Published(m, instances))
    add("+ index loss", plain, lambda m: Published(m, instances, index=True))
    add("+ one pass", plain)
    add("+ channels-last", last)
    if low is not None:
        add(f"+ {'bf16' if low == torch.bfloat16 else 'fp16'}", Runtime(device, low, True, False))
    if device.type == "cpu":
        add("+ plain attention", Runtime(device, low, True, False), plain_attention=True)
    add("+ compile", Runtime(device, low, True, True), plain_attention=True)
    return found


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply_rate(device, dtype, seconds=0.6):
    """FLOP/s of the fastest of a few sizes of torch.mm."""
    best = 0.0
    for side in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = torch.randn(side, side, device=device, dtype=dtype), torch.randn(side, side, device=device, dtype=dtype)
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)
        wait_for(device)
        began, times = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 2:
            for _ in range(1 if device.type == "cpu" else 20):
                torch.mm(a, b, out=out)
                times += 1
            wait_for(device)
        best = max(best, times * 2 * side**3 / (time.perf_counter() - began))
    return best


def stepper(module, model, machine, fused=True):
    """A function that makes a training step on its argument, the lists of `batch_of`: `module` (which computes the loss of `model`), AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-3, fused=fused or None)
    scaler = machine.scaler()

    def step(groups):
        with machine.autocast():
            loss = module(*groups)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def lower_precision(device):
    """The type of mixed precision that the hardware has, or None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None


def measure(name, size, batch, instances, repeats, steps, device, low, options=None):
    """{"crops_per_s": {system: {median, min, max}}, "ratios": {system: median of the rounds' ratios to "published"}, ...}."""
    groups = batch_of(batch, instances, size, device)
    crops = sum(x.shape[0] for x in groups[0])
    running, compared = {}, systems(name, size, instances, device, low, options)
    for what, (module, model, machine) in compared.items():
        running[what] = functools.partial(stepper(module, model, machine, what != "published"), groups)
    with FlopCounterMode(display=False) as counter:
        running["published"]()
    flop = counter.get_total_flops()
    compiled = {}
    for what, step in tqdm(running.items(), desc="warming up"):
        began = time.perf_counter()
        for _ in range(2):
            step()
        wait_for(device)
        compiled[what] = time.perf_counter() - began
    precisions = {"float32": torch.float32, **({str(low).removeprefix("torch."): low} if low is not None else {})}
    times, rates = {what: [] for what in running}, {p: [] for p in precisions}
    for _ in tqdm(range(repeats), desc="rounds"):
        for what, step in running.items():
            wait_for(device)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            wait_for(device)
            times[what].append((time.perf_counter() - began) / steps)
        for p, dtype in precisions.items():
            rates[p].append(multiply_rate(device, dtype))
    speed = {what: [crops / t for t in ts] for what, ts in times.items()}
    peak = {p: statistics.median(r) for p, r in rates.items()}
    precision_of = {
        what: "float32" if machine.amp is None else str(machine.amp).removeprefix("torch.")
        for what, (_, _, machine) in compared.items()
    }
    result = {what: {"median": statistics.median(s), "min": min(s), "max": max(s)} for what, s in speed.items()}
    for what, found in result.items():
        found["tflop_per_s"] = found["median"] * flop / crops / 1e12
        found["share"] = found["median"] * flop / crops / peak[precision_of[what]]
    return {
        "model": name,
        "image_size": size,
        "batch": batch,
        "instances": instances,
        "crops": crops,
        "gflop_per_crop": flop / crops / 1e9,
        "crops_per_s": result,
        "ratios": {w: statistics.median(a / b for a, b in zip(s, speed["published"])) for w, s in speed.items()},
        "multiply_tflop_per_s": {p: r / 1e12 for p, r in peak.items()},
        "first_two_steps_s": compiled,
        "steps": steps,
        "rounds": repeats,
    }


def table(result):
    """The figures as a Markdown table."""
    lines = [
        "| step | against the published one | crops/s | TFLOP/s | share of the machine's products |",
        "|---|---|---|---|---|",
    ]
    for what, found in result["crops_per_s"].items():
        lines.append(
            f"| {what} | **{result['ratios'][what]:.2f}** | {found['median']:,.0f} | {found['tflop_per_s']:.3g} | {found['share']:.0%} |"
        )
    return "\n".join(lines)


def run(args):
    """Measure and print; see `benchmark.py step --help`."""
    device = torch.device("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")
    if args.device == "cuda" and device.type != "cuda":
        raise ValueError("--device cuda, but torch sees no CUDA device")
    low = {"auto": lower_precision(device), "bf16": torch.bfloat16, "none": None}[args.low]
    result = measure(
        args.model, args.size, args.batch, args.instances, args.repeats, args.steps, device, low, args.options
    )
    result |= {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "machine": describe(),
    }
    print(
        f"{args.model} at {args.size}, {args.batch} images and {result['crops']} crops a step, {args.instances:,} instances; "
        f"{result['gflop_per_crop']:.2f} GFLOP a crop, forward and backward; {result['device']}, {result['threads']} threads"
    )
    print(table(result))
    print("torch.mm: " + ", ".join(f"{p} {r:.3g} TFLOP/s" for p, r in result["multiply_tflop_per_s"].items()))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result
