"""images/s over many short epochs against one epoch as long: what it costs to begin an epoch.

  epochs     epochs of --limit images, in eight batches each
  one epoch  the same images as often, in one epoch of as many batches
  cold       as epochs, but nothing is made ahead of the next epoch

All make IDMM's six crops at 112 pixels from stored pixels, the fastest that there is to load. A consumer that does
nothing reads them, where loading sets the pace, and one that sleeps a quarter longer for each batch than loading takes
("steps"), as where a GPU trains: it should never wait. All take turns, in every other round backwards.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from ..beton.read import Beton
from ..files import write_json
from ..loader import MultiCropLoader
from .machine import describe_machine, on_cores
from .photographs import open_betons
from .rounds import median_min_max, print_systems

_BATCHES = 8  # an epoch; 2,040 images are eight batches of 255
_DIFFERENT = 256  # images; an epoch has them again and again
_STEP = 1.25  # seconds of a step over those of loading its batch
_RATIOS = (
    ("epochs", "one epoch"),
    ("epochs, steps", "one epoch, steps"),
    ("epochs, steps", "cold, steps"),
)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py loader --help`, --epochs.

    Raises:
        ValueError: there are fewer images than batches.
    """
    if args.limit < _BATCHES:
        raise ValueError(f"--limit {args.limit} is less than the {_BATCHES} batches of an epoch")
    with on_cores(args.workers), tempfile.TemporaryDirectory() as scratch:
        few = argparse.Namespace(**{**vars(args), "limit": min(args.limit, _DIFFERENT)})
        result = _measure(open_betons(few, scratch)[1], args)
    print(
        f"{result['epochs']} epochs of {result['images']} images in batches of {result['batch']}, "
        f"{args.workers} worker(s), steps of {result['step_ms']:.0f} ms, medians of {args.repeats}"
    )
    print_systems(result["ratios"], result["images_per_s"], 36)
    for name, share in result["waited"].items():
        print(f"{name:<36} {share:6.1%} of the time waited for a batch")
    if args.json:
        write_json(args.json, result)
    return result


def _measure(beton: Beton, args: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    batch, epochs, workers = args.limit // _BATCHES, args.epochs, args.workers
    rows = np.resize(np.arange(len(beton)), _BATCHES * batch)
    loaders = {
        "epochs": MultiCropLoader(beton.path, batch, workers, rows=rows, epochs=epochs),
        "one epoch": MultiCropLoader(beton.path, batch, workers, rows=np.tile(rows, epochs), epochs=1),
    }
    for loader in loaders.values():
        next(iter(loader))
    step = _STEP * _consume(loaders["epochs"], 1, 0.0, True)[0] / _BATCHES
    systems: dict[str, tuple[MultiCropLoader, int, float, bool]] = {
        "epochs": (loaders["epochs"], epochs, 0.0, False),
        "one epoch": (loaders["one epoch"], 1, 0.0, False),
        "epochs, steps": (loaders["epochs"], epochs, step, False),
        "one epoch, steps": (loaders["one epoch"], 1, step, False),
        "cold, steps": (loaders["epochs"], epochs, step, True),
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    waited: dict[str, list[float]] = {name: [] for name in systems}
    for turn in tqdm(range(args.repeats), desc="rounds"):
        for name in list(systems)[:: -1 if turn % 2 else 1]:
            seconds, waiting = _consume(*systems[name])
            rates[name].append(epochs * rows.size / seconds)
            waited[name].append(waiting / seconds)
    return {
        "images": int(rows.size),
        "batch": batch,
        "epochs": epochs,
        "workers": workers,
        "repeats": args.repeats,
        "step_ms": 1e3 * step,
        "ratios": {f"{a} / {b}": statistics.median(x / y for x, y in zip(rates[a], rates[b])) for a, b in _RATIOS},
        "images_per_s": {name: median_min_max(found) for name, found in rates.items()},
        "waited": {name: statistics.median(found) for name, found in waited.items()},
        "machine": describe_machine(),
    }


def _consume(loader: MultiCropLoader, epochs: int, pause: float, cold: bool) -> tuple[float, float]:
    """Read the first epochs, sleep `pause` seconds after each batch: (seconds, of these seconds waited)."""
    loader.set_epoch(0)
    began, waited = time.perf_counter(), loader.waited
    for _ in range(epochs):
        for _ in loader:
            if pause:
                time.sleep(pause)
        if cold:
            loader.close()
    seconds, waiting = time.perf_counter() - began, loader.waited - waited
    loader.close()
    return seconds, waiting
