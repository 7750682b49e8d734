"""images/s of the loader that makes IDMM's six crops at 112 pixels, uint8, against baselines.

All systems read the same JPEGs, on the same cores, in one process. They take turns, in every other round backwards. A
rate is the median over the rounds, a ratio the median of the rounds' ratios, which cancels the machine's drift.

  ours           MultiCropLoader, CutMix included
  ours, raw      the same images stored as pixels
  ours, twice    with twice the workers on twice the cores, where there are that many
  decode         libjpeg-turbo alone on the same bytes, into one buffer: the floor of a loader that decodes in full
  decode, twice  the same with twice the workers: what the machine gives at best
  baselines      see baselines.py

With --epochs it measures what it costs to begin an epoch instead, see epochs.py; with --spread what is won where an
image is decoded once for several epochs, see spread.py.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..beton.read import Beton
from ..files import write_json
from ..loader import MultiCropLoader
from ..plots.figure import new_figure, save_figure
from . import epochs, spread
from .baselines import BASELINES
from .machine import describe_machine
from .photographs import open_betons
from .rounds import System, median_min_max, print_systems
from .stages import STAGES, Stages, kernel_microseconds

_PASSES = 4  # of the fast systems over the images in a turn, so that their turns are long enough to time

BASELINE_NAMES = {
    "ours / official": "reference implementation (PIL, torchvision)",
    "ours / dali": "NVIDIA DALI, CPU pipeline",
    "ours / ffcv": "stock FFCV, one decoder per crop",
    "ours / albumentations": "Albumentations 2 on OpenCV",
    "ours / decode": "libjpeg-turbo, decoding alone",
    "ours, raw / official": "reference implementation on JPEGs, ours on raw pixels",
    "ours, twice / ours": "one worker, ours with two",
    "decode, twice / decode": "one decoding thread, two of them",
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py loader --help`.

    Raises:
        ValueError: A baseline is unknown, or there are fewer cores than workers.
    """
    baselines = [name for name in args.peers.split(",") if name]
    unknown = set(baselines) - set(BASELINES)
    if unknown:
        raise ValueError(f"unknown baselines {sorted(unknown)}; there are: {', '.join(BASELINES)}")
    cores = sorted(os.sched_getaffinity(0))
    if args.workers > len(cores):
        raise ValueError(f"--workers {args.workers} is more than the {len(cores)} cores of this machine")
    if args.epochs:
        return epochs.run(args)
    if args.spread:
        return spread.run(args)
    torch.set_num_threads(args.workers)
    with tempfile.TemporaryDirectory() as scratch:
        jpg, raw = open_betons(args, scratch)
        rows = np.arange(min(args.limit, len(jpg)))
        systems = _our_systems(jpg, raw, rows, args.workers, cores)
        os.sched_setaffinity(0, set(cores[: args.workers]))
        found, absent = _baseline_systems(baselines, jpg, rows, args.workers)
        rates = _measure(systems | found, args.repeats, cores, args.workers)
        stages = {"jpg": Stages(jpg, rows).microseconds(), "raw": Stages(raw, rows).microseconds()}
    for mode, name in (("jpg", "ours"), ("raw", "ours, raw")):
        stages[mode]["wait"] = 1e6 * args.workers / statistics.median(rates[name]) - sum(stages[mode].values())
    result = {
        "images": int(rows.size),
        "median_pixels": [int(np.median(jpg.height)), int(np.median(jpg.width))],
        "workers": args.workers,
        "repeats": args.repeats,
        "ratios": _ratios(rates),
        "absent": absent,
        "microseconds_per_image": stages,
        "microseconds_per_view": kernel_microseconds(),
        "images_per_s": {name: median_min_max(r) for name, r in rates.items()},
        "machine": describe_machine(),
    }
    _print(result)
    if args.json:
        write_json(args.json, result)
    if args.plot:
        _plot(result, args.plot)
    return result


def _our_systems(jpg: Beton, raw: Beton, rows: np.ndarray, workers: int, cores: list[int]) -> dict[str, System]:
    """Ours and decoding alone, once and, where there are cores enough, with twice the workers."""
    systems = {}
    if 2 * workers <= len(cores):
        os.sched_setaffinity(0, set(cores[: 2 * workers]))
        systems["ours, twice"] = _ours(jpg, rows, 2 * workers)
        systems["decode, twice"] = _decoder(jpg, rows, 2 * workers)
        for system in systems.values():
            system.run()  # its threads are made now, and may use the cores of now
    os.sched_setaffinity(0, set(cores[:workers]))
    systems["ours"] = _ours(jpg, rows, workers)
    systems["decode"] = _decoder(jpg, rows, workers)
    systems["ours, raw"] = _ours(raw, rows, workers)
    return systems


def _ours(beton: Beton, rows: np.ndarray, workers: int) -> System:
    """The loader, over all images."""
    loader = MultiCropLoader(beton.path, 64, workers, rows=rows, epochs=_PASSES)

    def everything() -> None:
        loader.set_epoch(0)
        for _ in range(_PASSES):
            for _ in loader:
                pass

    return System(everything, _PASSES * rows.size)


def _decoder(beton: Beton, rows: np.ndarray, workers: int) -> System:
    """Decoding alone, every image into the buffer of its thread."""
    parts = [Stages(beton, part) for part in np.array_split(rows, workers)]

    def everything() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in range(_PASSES):
                list(pool.map(lambda stages: stages.run_through("decode"), parts))

    return System(everything, _PASSES * rows.size)


def _baseline_systems(
    names: list[str], jpg: Beton, rows: np.ndarray, workers: int
) -> tuple[dict[str, System], list[str]]:
    """The baselines that are installed, and the names of the others."""
    data = [bytes(jpg.bytes[p : p + n]) for p, n in zip(jpg.ptr[rows], jpg.length[rows])]
    systems, absent = {}, []
    for name in names:
        try:
            systems[name] = BASELINES[name](jpg, data, workers)
        except ImportError as error:
            absent.append(name)
            print(f"{name} is not installed ({error.name}); pip does it, or `make bench` in a checkout")
    return systems, absent


def _measure(systems: dict[str, System], repeats: int, cores: list[int], workers: int) -> dict[str, list[float]]:
    """images/s of each system in each round."""
    few, twice = set(cores[:workers]), set(cores[: 2 * workers])
    for name in tqdm(systems, desc="warming up"):
        systems[name].run()
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for turn in tqdm(range(repeats), desc="rounds"):
        for name, system in list(systems.items())[:: -1 if turn % 2 else 1]:
            os.sched_setaffinity(0, twice if name.endswith("twice") else few)
            time.sleep(0.5)  # what a system still prepares for its next turn must not slow another one
            began = time.perf_counter()
            system.run()
            rates[name].append(system.images / (time.perf_counter() - began))
    os.sched_setaffinity(0, few)
    return rates


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """{"a / b": the median of the rounds' ratios}."""

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(rates[a], rates[b]))

    others = [name for name in rates if not name.startswith("ours") and name != "decode, twice"]
    ratios = {f"ours / {name}": ratio("ours", name) for name in others}
    if "official" in rates:
        ratios["ours, raw / official"] = ratio("ours, raw", "official")
    if "ours, twice" in rates:
        ratios["ours, twice / ours"] = ratio("ours, twice", "ours")
        ratios["decode, twice / decode"] = ratio("decode, twice", "decode")
    return ratios


def table(result: dict[str, Any]) -> str:
    """The ratios as a Markdown table."""
    lines = ["| baseline | speed-up | images/s (ours / baseline) |", "|---|---|---|"]
    for name, ratio in result["ratios"].items():
        ours, theirs = (result["images_per_s"][system]["median"] for system in name.split(" / "))
        lines.append(f"| {BASELINE_NAMES[name]} | **{ratio:.2f}** | {ours:.0f} / {theirs:.0f} |")
    return "\n".join(lines) + "\n"


def _plot(result: dict[str, Any], path: Path) -> None:
    """Rates as bars, and the stages of an image as parts of a bar."""
    figure = new_figure(11, 3.2)
    rates, stages = figure.subplots(1, 2)
    medians = {name: r["median"] for name, r in result["images_per_s"].items()}
    names = sorted(medians, key=lambda name: medians[name])
    colours = ["tab:blue" if name.startswith("ours") else "silver" for name in names]
    bars = rates.barh(names, [medians[name] for name in names], color=colours)
    rates.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    rates.set(title=f"six crops an image, {result['workers']} core(s)", xlabel="images/s")
    left = dict.fromkeys(result["microseconds_per_image"], 0.0)
    for k, stage in enumerate((*STAGES, "wait")):
        widths = [max(result["microseconds_per_image"][mode][stage], 0.0) for mode in left]
        drawn = stages.barh(list(left), widths, left=list(left.values()), color=f"C{k}", label=stage)
        stages.bar_label(drawn, [f"{w:.0f}" if w > 60 else "" for w in widths], label_type="center", fontsize=8)
        left = {mode: left[mode] + w for mode, w in zip(left, widths)}
    stages.set(title="where our time goes", xlabel="microseconds an image")
    stages.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save_figure(figure, path)


def _print(result: dict[str, Any]) -> None:
    """All figures, a line each."""
    height, width = result["median_pixels"]
    print(
        f"{result['images']} images of about {width} x {height}, six crops each, {result['workers']} worker(s), "
        f"medians of {result['repeats']}"
    )
    print_systems(result["ratios"], result["images_per_s"], 24)
    for mode, stages in result["microseconds_per_image"].items():
        print(f"microseconds an image, {mode}: " + ", ".join(f"{stage} {t:.0f}" for stage, t in stages.items()))
    print("microseconds a crop: " + ", ".join(f"{name} {t:.1f}" for name, t in result["microseconds_per_view"].items()))
