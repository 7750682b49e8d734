"""Training with as many instances as ImageNet has: its losses, time and peak memory.

A beton of 1,281,167 raw images of 16 x 16 pixels is made, and `idmm-fast pretrain` takes a few steps on it, once, in a
process of its own on the CPU. Its peak memory holds the head's 1,281,167 x 192 weights, their gradient, AdamW's two
moments and the workspace of the fused loss, but never the logits.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..beton.checksum import checksums, table_checksum
from ..beton.format import ALLOCATION, DEFAULT_PAGE, HEADER, RAW, SAMPLE, SUMS_MARK, VERSION, fields, sums_start
from ..files import write_json
from .machine import describe_machine

SIDE = 16  # pixels


def make_beton(path: Path, rows: int, side: int = SIDE, seed: int = 0) -> None:
    """Write a beton of raw images of random blocks, all at once.

    Args:
        path: The file.
        rows: How many images.
        side: Their height and width, in pixels.
        seed: Of the blocks.
    """
    size = side * side * 3
    a_page = DEFAULT_PAGE // size
    samples, allocations = np.zeros(rows, SAMPLE), np.zeros(rows, ALLOCATION)
    tables = HEADER.itemsize + fields().nbytes + samples.nbytes
    first = -(-(sums_start(tables) + 16 + 8 * rows) // DEFAULT_PAGE) * DEFAULT_PAGE
    at = first + np.arange(rows) // a_page * DEFAULT_PAGE + np.arange(rows) % a_page * size
    pages = -(-rows // a_page)
    for key, value in (("mode", RAW), ("width", side), ("height", side), ("data_ptr", at)):
        samples["f0"][key] = value
    allocations["sample_id"], allocations["ptr"], allocations["size"] = np.arange(rows), at, size
    header = np.array([(VERSION, 2, DEFAULT_PAGE, rows, first + pages * DEFAULT_PAGE)], HEADER)
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        for page in range(pages):
            count = min(a_page, rows - page * a_page)
            blocks = rng.integers(0, 256, (count, side // 4, 1, side // 4, 1, 3), dtype=np.uint8)
            file.seek(first + page * DEFAULT_PAGE)
            file.write(np.broadcast_to(blocks, (count, side // 4, 4, side // 4, 4, 3)).tobytes())
        file.seek(first + pages * DEFAULT_PAGE)
        file.write(allocations.tobytes())
    sums = np.empty(rows, np.uint64)
    checksums(np.memmap(path, np.uint8, mode="r"), at.astype(np.int64), np.full(rows, size), sums)
    head = header.tobytes() + fields().tobytes() + samples.tobytes()
    head += bytes(sums_start(len(head)) - len(head))
    with open(path, "r+b") as file:
        file.write(
            head + np.array([SUMS_MARK, table_checksum(head, sums, allocations)], np.uint64).tobytes() + sums.tobytes()
        )


def _train(beton: Path, out: Path, batch: int, steps: int) -> tuple[float, str]:
    """A few steps of a small ViT. Returns its seconds, with start and data, and what it says of the head's loss."""
    command = [
        sys.executable,
        "-m",
        "idmm_fast",
        "pretrain",
        f"--data.train={beton}",
        "--model.name=vit_tiny_patch16_224",
        "--model.image_size=16",
        "--model.options={patch_size: 8, depth: 2}",
        f"--training.batch_size={batch}",
        f"--training.max_steps={steps}",
        "--training.epochs=1",
        "--training.warmup_epochs=0",
        "--training.compile=false",
        "--training.device=cpu",
        f"--logging.run_dir={out}",
    ]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ValueError(f"training failed: {done.stderr.strip().splitlines()[-1]}")
    parts = (done.stdout + done.stderr).replace("\n", "; ").split("; ")
    return seconds, next((part for part in parts if "loss (dense logits" in part), "")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py head --help`.

    Raises:
        ValueError: The training fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        beton, out = Path(folder) / "many.beton", Path(folder) / "run"
        make_beton(beton, args.classes)
        seconds, said = _train(beton, out, args.batch, args.steps)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    result = {
        "classes": args.classes,
        "batch": args.batch,
        "steps": len(losses),
        "seconds": seconds,
        "peak_mb": peak,
        "losses": losses,
        "said": said,
        "machine": describe_machine(),
    }
    print(
        f"N = {args.classes:,}, {args.batch} images a step (six crops each), {len(losses)} steps in {seconds:.0f} s "
        f"with start and data: {said}"
    )
    print(f"loss {losses[0]:.3f} .. {losses[-1]:.3f}; peak memory {peak:.0f} MB")
    if args.json:
        write_json(args.json, result)
    return result
