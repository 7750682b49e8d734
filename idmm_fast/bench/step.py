"""crops/s of a training step, from the reference implementation to ours, one switch after another.

  reference implementation  eager float32, a forward pass per multi-crop group (2 B, 4 B crops), dense targets, B x N
  + index targets           the loss from idx_a, idx_b, lam
  + one pass                the 6 B crops together
  + channels-last
  + bf16                    fp16 on a GPU without bf16; left out on a CPU without it, which emulates it
  + plain attention         on a CPU, where the sequence is short enough for it (runtime/device.py)
  + patches multiplied      the patch embedding as a matrix product, in bf16 on a CPU (models/cpu.py)
  + compile

Every switch comes on top of those before it. Batches are synthetic and already on the device: loading is not measured
here (`benchmark.py end_to_end` does that). The systems take turns in each round; figures are medians over `--repeats`
rounds. FLOP are counted by torch on the step of the reference implementation, so they are the model's, whoever
computes them. The peak is that of the best of a few sizes of torch.mm, in float32 and in the lower precision,
measured in each round too.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..files import write_json
from ..runtime.device import cpu_has_bf16
from .machine import describe_machine
from .rounds import median_min_max
from .step_systems import REFERENCE, StepSetting, dtype_name, make_batch, make_step, make_systems

ROW_NAMES = {REFERENCE: "reference implementation", "+ index loss": "+ index targets"}  # how a table names the figures


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """FLOP/s of the fastest of a few sizes of torch.mm, each measured for half of `seconds`."""
    best = 0.0
    for side in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
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


def lower_precision(device: torch.device) -> torch.dtype | None:
    """The lower precision that the hardware has, or None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None


def count_flop(step: Callable[[], object]) -> int:
    """FLOP of a step, as torch counts them, with attention as products: fused on a CPU, none are counted."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


def measure(
    setting: StepSetting, repeats: int, steps: int, device: torch.device, low: torch.dtype | None
) -> dict[str, Any]:
    """The figures of all rows; float32 is multiplied as float32, not as TF32, whatever was measured before.

    Args:
        setting: What is trained.
        repeats: Rounds.
        steps: Steps of a system in a round.
        device: Where.
        low: The lower precision; None for none.

    Returns:
        {"crops_per_s": {row: {"median", "min", "max", "tflop_per_s", "share"}}, "ratios": {row: median of the rounds'
        ratios to the reference}, ...}.
    """
    torch.set_float32_matmul_precision("highest")
    batch = make_batch(setting.batch, setting.instances, setting.size, device)
    crops = sum(x.shape[0] for x in batch[0])
    systems = make_systems(setting, device, low)
    running = {
        what: functools.partial(make_step(s.module, s.model, s.runtime, what != REFERENCE), batch)
        for what, s in systems.items()
    }
    flop = count_flop(running[REFERENCE]) / crops
    first = {what: _seconds(step, 2, device) for what, step in tqdm(running.items(), desc="warming up")}
    dtypes = [torch.float32] if low is None else [torch.float32, low]
    speed: dict[str, list[float]] = {what: [] for what in running}
    rates: dict[str, list[float]] = {dtype_name(dtype): [] for dtype in dtypes}
    for _ in tqdm(range(repeats), desc="rounds"):
        for what, step in running.items():
            speed[what].append(crops * steps / _seconds(step, steps, device))
        for dtype in dtypes:
            rates[dtype_name(dtype)].append(multiply_rate(device, dtype))
    peak = {precision: statistics.median(r) for precision, r in rates.items()}
    figures = {}
    for what, s in speed.items():
        achieved = statistics.median(s) * flop
        share = achieved / peak[systems[what].precision]
        figures[what] = median_min_max(s) | {"tflop_per_s": achieved / 1e12, "share": share}
    return {
        "model": setting.model,
        "image_size": setting.size,
        "batch": setting.batch,
        "instances": setting.instances,
        "crops": crops,
        "gflop_per_crop": flop / 1e9,
        "crops_per_s": figures,
        "ratios": {what: statistics.median(a / b for a, b in zip(s, speed[REFERENCE])) for what, s in speed.items()},
        "multiply_tflop_per_s": {precision: rate / 1e12 for precision, rate in peak.items()},
        "first_two_steps_s": first,
        "steps": steps,
        "rounds": repeats,
    }


def _seconds(step: Callable[[], None], times: int, device: torch.device) -> float:
    """How long `times` calls take, the device's work included."""
    wait_for(device)
    began = time.perf_counter()
    for _ in range(times):
        step()
    wait_for(device)
    return time.perf_counter() - began


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| step | speed-up | crops/s | TFLOP/s | share of matrix-multiply peak |", "|---|---|---|---|---|"]
    for what, found in result["crops_per_s"].items():
        lines.append(
            f"| {ROW_NAMES.get(what, what)} | **{result['ratios'][what]:.2f}** | {found['median']:,.0f} | "
            f"{found['tflop_per_s']:.3g} | {found['share']:.0%} |"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py step --help`.

    Raises:
        ValueError: There is no CUDA device, and one was asked for.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")
    if args.device == "cuda" and device.type != "cuda":
        raise ValueError("--device cuda, but torch sees no CUDA device")
    low = {"auto": lower_precision(device), "bf16": torch.bfloat16, "none": None}[args.low]
    setting = StepSetting(args.model, args.size, args.batch, args.instances, args.options)
    result = measure(setting, args.repeats, args.steps, device, low) | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }
    print(
        f"{args.model} at {args.size}, {args.batch} images and {result['crops']} crops a step, "
        f"{args.instances:,} instances; {result['gflop_per_crop']:.2f} GFLOP a crop, forward and backward; "
        f"{result['device']}, {result['threads']} threads"
    )
    print(table(result))
    print("torch.mm: " + ", ".join(f"{p} {r:.3g} TFLOP/s" for p, r in result["multiply_tflop_per_s"].items()))
    if args.json:
        write_json(args.json, result)
    return result
