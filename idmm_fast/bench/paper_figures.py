"""The figures of a training in `benchmark.py paper`: its rates, the FLOP of its model, what the card can do."""

import contextlib
import gc
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..config import replace
from ..config.finetune import SCHEMA as FINETUNE
from ..config.load import Schema
from ..runtime.device import Runtime
from ..train.task import Task
from .step import count_flop, multiply_rate

# TFLOP/s of the makers' data sheets: bf16, dense (without sparsity), summed in float32. TF32 has half of it on all.
DATASHEET = {
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA GeForce RTX 4090": 165,
}


def training_rates(folder: Path, images: int, batch_size: int) -> dict[str, float]:
    """Images a second and the share of the time waited for data, of a finished training.

    They are of all epochs but the first one of each start, which compiles: with evaluations, checkpoints and what lies
    between two epochs. Of a training that was over a second after such an epoch, they are of all.

    Args:
        folder: The run folder.
        images: Images of an epoch.
        batch_size: Images a step.

    Returns:
        {"images_per_s", "data_wait" (0 .. 1), "first_epochs_s": seconds of the first epoch of each start beyond what
        its images take at that rate}.
    """
    lines = _read_lines(folder / "metrics.jsonl")
    starts = sorted({line["step"] for line in _read_lines(folder / "starts.jsonl")})
    steps = np.array([line["step"] for line in lines])
    steps_per_epoch = -(-images // batch_size)
    last = images - (steps_per_epoch - 1) * batch_size
    size = np.where(steps % steps_per_epoch == steps_per_epoch - 1, last, batch_size)
    seconds, waited = np.zeros(len(lines)), np.zeros(len(lines))
    for segment in np.split(np.arange(len(lines)), np.searchsorted(steps, starts)):
        if segment.size:
            rate, wait = _rates_of_windows([lines[k] for k in segment])
            seconds[segment] = size[segment] / rate
            waited[segment] = seconds[segment] * wait
    first = np.isin(steps // steps_per_epoch, [start // steps_per_epoch for start in starts])
    known = np.isfinite(seconds)
    kept = known & ~first if (known & ~first).any() else known
    rate = size[kept].sum() / seconds[kept].sum()
    first &= known
    return {
        "images_per_s": float(rate),
        "data_wait": float(waited[kept].sum() / seconds[kept].sum()),
        "first_epochs_s": max(0.0, float(seconds[first].sum() - size[first].sum() / rate)),
    }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rates_of_windows(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Images a second and share waited of each step of one start.

    The trainer measures over windows of at least a second and logs the last complete one with every step. The window
    that a step is in is the one that ends with it or after it, where the logged figures change next. Of the steps
    after the last one (less than a second) nothing is known: nan.
    """
    figures = np.array([(line["images_per_s"], line["data_wait"]) for line in lines])
    ends = np.flatnonzero(np.r_[True, (np.diff(figures, axis=0) != 0).any(1)])
    window = np.searchsorted(ends, np.arange(len(lines)))  # len(ends) of those after the last one
    rate, wait = np.vstack([figures[ends], [np.nan, np.nan]])[window].T
    return rate, wait


def make_task_on_cpu(make: Callable[[SimpleNamespace], Task], schema: Schema, cfg: SimpleNamespace) -> Task:
    """A training that has run, made anew from random weights, on the CPU and in float32, to look at and count.

    Args:
        make: Makes the training of a configuration.
        schema: What the configuration is of.
        cfg: The configuration.
    """
    changes: dict[str, Any] = {"training.device": "cpu", "training.amp": "fp32", "training.compile": False}
    if schema is FINETUNE:
        changes |= {"model.init": None, "model.init_head": False}
    return make(replace(schema, cfg, changes))


def flop_per_image(task: Task, images: int = 2) -> float:
    """FLOP of an image in training with all its crops, forward and backward, counted by torch on a step.

    They are the model's: matrix products and convolutions, attention as plain products, nothing computed twice.

    Args:
        task: On the CPU.
        images: Images of the step.
    """
    loss, _ = task.step_cost()
    return count_flop(lambda: loss(images).backward()) / images


def device_rates(runtime: Runtime, flop_per_s: float) -> dict[str, float | None]:
    """What the model's FLOP/s are of what the device multiplies, measured now by torch.mm, and of its data sheet."""
    dtype = runtime.amp or torch.float32
    measured = multiply_rate(runtime.device, dtype) / 1e12
    sheet = datasheet_rate(torch.cuda.get_device_name(runtime.device), dtype) if _is_cuda(runtime) else None
    rate = flop_per_s / 1e12
    return {
        "tflop_per_s": rate,
        "mm_tflop_per_s": measured,
        "share_of_mm": rate / measured,
        "datasheet_tflop_per_s": sheet,
        "share_of_datasheet": rate / sheet if sheet else None,
    }


def datasheet_rate(name: str, dtype: torch.dtype) -> float | None:
    """TFLOP/s of a card by its data sheet, None of a card that is not in the table; float32 is multiplied as TF32."""
    rate = DATASHEET.get(name)
    return rate / 2 if rate and dtype == torch.float32 else rate


def _is_cuda(runtime: Runtime) -> bool:
    return runtime.device.type == "cuda"


def forget_trainings() -> None:
    """Let go of the models and compiled graphs of earlier trainings, as if each had a process of its own.

    They would count in the peak memory, and torch compiles a function eight times at most.
    """
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def reset_peak_memory(runtime: Runtime) -> None:
    """Let the peak begin at what is used now. Where the kernel does not allow that, it stays the process's."""
    if _is_cuda(runtime):
        torch.cuda.reset_peak_memory_stats(runtime.device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_memory_mb(runtime: Runtime) -> float:
    """The peak in MB: of what torch has allocated on a GPU, else of the resident memory of this process."""
    if _is_cuda(runtime):
        return torch.cuda.max_memory_allocated(runtime.device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def compile_seconds() -> float:
    """Seconds that torch.compile has taken in this process so far, by torch's own clock."""
    clocks = sys.modules.get("torch._dynamo.utils")  # nothing is compiled before it is imported
    return clocks.calculate_time_spent()["total_wall_time"] if clocks else 0.0
