"""images/s of one crop an image, each image decoded once for K epochs, against one decoding a crop.

  jpg, raw, kept   a crop of 112 pixels of each image an epoch, from JPEGs, stored pixels, JPEGs kept in memory
  ..., spread      the same crops, those of K epochs made at once (loader/spread.py)

A turn is two rounds of K epochs from a cold start. All take turns; a ratio is the
median of the rounds' ratios.
"""

import argparse
import functools
import statistics
import tempfile
from typing import Any

import numpy as np

from ..files import write_json
from ..loader import MultiCropLoader, Views, open_cache
from .machine import describe_machine, on_cores
from .photographs import open_betons
from .rounds import median_min_max, print_systems, time_rounds

_BATCHES = 8  # an epoch
_ROUNDS = 2  # of a turn


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py loader --help`, --spread.

    Raises:
        ValueError: there are fewer images than batches.
        MemoryError: the pixels don't fit into memory.
    """
    if args.limit < _BATCHES:
        raise ValueError(f"--limit {args.limit} is less than the {_BATCHES} batches of an epoch")
    with on_cores(args.workers), tempfile.TemporaryDirectory() as scratch:
        result = _measure(args, scratch)
    print(
        f"{result['images']} images in batches of {result['batch']}, one crop each, decoded once in "
        f"{args.spread} epochs, "
        f"{args.workers} worker(s), medians of {args.repeats}"
    )
    print_systems(result["ratios"], result["images_per_s"], 24)
    if args.json:
        write_json(args.json, result)
    return result


def _measure(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """The figures."""
    jpg, raw = open_betons(args, scratch)
    if len(jpg) < _BATCHES:
        raise ValueError(f"{len(jpg)} images are less than the {_BATCHES} batches of an epoch")
    batch = min(args.limit, len(jpg)) // _BATCHES
    rows, epochs = np.arange(_BATCHES * batch), _ROUNDS * args.spread
    cache = open_cache(jpg, rows, "memory")
    if not cache.size:
        raise MemoryError(cache.description)

    def read(spread: int, path: Any, cache: Any) -> None:
        # A loader of its own for each turn: nothing of an earlier one is in its memory.
        views = [Views(1, 112, (0.14, 1.0))]
        options: dict[str, Any] = {"rows": rows, "epochs": epochs, "cache": cache, "spread": spread}
        loader = MultiCropLoader(path, batch, args.workers, 0, 0, views, **options)
        for _ in range(epochs):
            for _ in loader:
                pass

    sources: dict[str, Any] = {"jpg": (jpg.path, None), "raw": (raw.path, None), "kept": (jpg.path, cache)}
    functions = {}
    for name, source in sources.items():
        functions[name] = functools.partial(read, 1, *source)
        functions[f"{name}, spread"] = functools.partial(read, args.spread, *source)
    seconds = time_rounds(functions, args.repeats)
    ratios = {
        f"{name}, spread / {name}": statistics.median(a / b for a, b in zip(seconds[name], seconds[f"{name}, spread"]))
        for name in sources
    }
    return {
        "images": int(rows.size),
        "median_pixels": [int(np.median(jpg.height)), int(np.median(jpg.width))],
        "batch": batch,
        "spread": args.spread,
        "workers": args.workers,
        "repeats": args.repeats,
        "ratios": ratios,
        "images_per_s": {name: median_min_max([epochs * rows.size / t for t in s]) for name, s in seconds.items()},
        "machine": describe_machine(),
    }
