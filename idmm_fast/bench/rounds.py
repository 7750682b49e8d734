"""Systems timed against each other: they take turns in every round, so that a slow minute of the machine meets all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

Spread = dict[str, float]  # {"median", "min", "max"}


@dataclass(frozen=True)
class System:
    """Something that is timed.

    Args:
        run: Does all of its work once.
        images: How many images that work is.
    """

    run: Callable[[], None]
    images: int = 1


def median_min_max(numbers: Sequence[float]) -> Spread:
    """How a figure is told."""
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def time_rounds(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function in each of `repeats` rounds, after a call of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in tqdm(range(repeats), desc="rounds"):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def print_systems(ratios: Mapping[str, float], rates: Mapping[str, Spread], width: int) -> None:
    """The ratios first, then each system's images a second, a line each; `width`: of their names, in characters."""
    for name, ratio in ratios.items():
        print(f"{name:<{width}} {ratio:6.2f}")
    for name, rate in rates.items():
        print(f"{name:<{width}} {rate['median']:6.0f} images/s   ({rate['min']:.0f} .. {rate['max']:.0f})")
