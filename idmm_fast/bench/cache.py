"""images/s of the loader with JPEGs that are decoded once and kept, against the same images stored as pixels.

IDMM's six crops at 112 pixels, uint8, all systems in one process on the same cores, in turns. A ratio is the median of
the rounds' ratios, which cancels the machine's drift.

  jpg, kept   JPEGs from the second epoch on: their pixels are in memory
  raw         the same pixels stored in the beton
  jpg         JPEGs, decoded in every epoch
  jpg, first  the first epoch of a run that keeps them: memory is taken from the system, and given back
"""

import argparse
import functools
import mmap
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..beton import open_beton
from ..files import write_json
from ..loader import ImageCache, MultiCropLoader, open_cache
from .machine import describe_machine, on_cores
from .photographs import open_betons
from .rounds import median_min_max, print_systems, time_rounds

_PASSES = 4  # over the images in a turn, so that it is long enough to time
_NAMES = {
    "jpg, kept / raw": "JPEGs from the second epoch on, against stored pixels",
    "jpg, kept / jpg": "JPEGs from the second epoch on, against JPEGs decoded in every epoch",
    "jpg, first / jpg": "the first epoch, which fills the memory, against JPEGs decoded in every epoch",
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py cache --help`.

    Raises:
        MemoryError: the pixels don't fit into memory.
    """
    with on_cores(args.workers), tempfile.TemporaryDirectory() as scratch:
        jpg, raw = open_betons(args, scratch)
        rows = np.arange(min(args.limit, len(jpg)))
        again = Path(shutil.copy(jpg.path, Path(scratch) / "again.beton"))  # else its memory would be found
        cache = open_cache(jpg, rows, "memory")
        if not cache.size:
            raise MemoryError(cache.description)

        def make(path: Path, cache: ImageCache | None = None) -> MultiCropLoader:
            return MultiCropLoader(path, 64, args.workers, rows=rows, cache=cache, epochs=_PASSES)

        first = make(again, open_cache(open_beton(again), rows, "memory"))
        first.epochs = 1  # no batch is made ahead while the memory is emptied

        def first_epochs() -> None:
            for _ in range(_PASSES):
                first.cache.store.base.obj.madvise(mmap.MADV_REMOVE)  # type: ignore[union-attr]  # all zeros again
                _read(first)

        functions: dict[str, Callable[[], None]] = {"jpg, first": first_epochs}
        loaders = {"jpg, kept": make(jpg.path, cache), "raw": make(raw.path), "jpg": make(jpg.path)}
        for name, loader in loaders.items():
            functions[name] = functools.partial(_read, loader, _PASSES)
        seconds = time_rounds(functions, args.repeats)
        sizes = {"jpg": int(jpg.length[rows].sum()), "raw": int(raw.length[rows].sum())}
    rates = {name: [_PASSES * rows.size / t for t in times] for name, times in seconds.items()}
    result = {
        "images": int(rows.size),
        "median_pixels": [int(np.median(jpg.height)), int(np.median(jpg.width))],
        "workers": args.workers,
        "repeats": args.repeats,
        "ratios": {name: _ratio(rates, *name.split(" / ")) for name in _NAMES},
        "bytes": sizes | {"kept": cache.size},
        "images_per_s": {name: median_min_max(r) for name, r in rates.items()},
        "machine": describe_machine(),
    }
    print_systems(result["ratios"], result["images_per_s"], 20)
    print(f"{'disk, jpg / raw':<20} {sizes['jpg'] / sizes['raw']:6.2f}")
    if args.json:
        write_json(args.json, result)
    return result


def table(result: dict[str, Any]) -> str:
    """The ratios as a Markdown table."""
    lines = ["| what | ratio | images/s |", "|---|---|---|"]
    for name, ratio in result["ratios"].items():
        a, b = (result["images_per_s"][system]["median"] for system in name.split(" / "))
        lines.append(f"| {_NAMES[name]} | **{ratio:.2f}** | {a:.0f} / {b:.0f} |")
    sizes = result["bytes"]
    lines.append(f"| disk, JPEGs against pixels | **{sizes['jpg'] / sizes['raw']:.2f}** | |")
    return "\n".join(lines) + "\n"


def _ratio(rates: dict[str, list[float]], a: str, b: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(x / y for x, y in zip(rates[a], rates[b]))


def _read(loader: MultiCropLoader, passes: int = 1) -> None:
    """All batches of so many epochs, and nothing ahead of them."""
    loader.set_epoch(0)
    for _ in range(passes):
        for _ in loader:
            pass
