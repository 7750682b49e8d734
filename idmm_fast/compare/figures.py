"""Charts of a sweep's results, each drawn on an axis that is given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ..plots.figure import shown_name
from .spec import RANDOM
from .stats import Numbers, display_name, mean_std
from .store import Record


def plot_bars(
    axis: Axes,
    groups: Mapping[Any, str],
    series: Mapping[Any, str],
    get: Callable[[Any, Any], Numbers],
    ylabel: str,
) -> None:
    """Bars with error bars: a cluster per group, a colour per series, a point per seed.

    Args:
        axis: What is drawn on.
        groups: {key: title}.
        series: {key: title}.
        get: The numbers of a group's and a series' key.
        ylabel: The title of the y-axis.
    """
    width, colours = 0.8 / len(series), colormaps["tab10" if len(series) <= 10 else "tab20"]
    for k, (key, title) in enumerate(series.items()):
        found = [get(group, key) for group in groups]
        at = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
        stats = [mean_std(numbers.values()) if numbers else (np.nan, np.nan) for numbers in found]
        axis.bar(
            at,
            [mean for mean, _ in stats],
            width * 0.95,
            yerr=[deviation for _, deviation in stats],
            capsize=2,
            label=title,
            color=colours(k % 20),
        )
        for x, numbers in zip(at, found):
            axis.plot([x] * len(numbers), list(numbers.values()), "k.", markersize=3)
    names = [shown_name(name, 0).replace(", ", ",\n") for name in groups.values()]
    axis.set_xticks(np.arange(len(groups)), names)
    axis.set(ylabel=ylabel)
    axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def plot_lines(
    axis: Axes,
    xs: Sequence[int],
    series: Mapping[str, str],
    get: Callable[[int, str], Numbers],
    xlabel: str,
    scratch: float | None = None,
) -> None:
    """Top-1 with error bars over the numbers `xs`, on a logarithmic axis.

    Args:
        axis: What is drawn on.
        xs: Numbers of images or of crops.
        series: {key: title}, a curve each.
        get: The numbers at an x of a series' key.
        xlabel: The title of the x-axis.
        scratch: Where a dashed line shows training from scratch.
    """
    if scratch is not None:
        axis.axhline(scratch, color="gray", linestyle="--", label=display_name(RANDOM))
    for k, (key, title) in enumerate(series.items()):
        found = [(x, get(x, key)) for x in xs]
        points = [(x, *mean_std(numbers.values())) for x, numbers in found if numbers]
        if points:
            at, mean, deviation = zip(*points)
            axis.errorbar(at, mean, deviation, marker="o", markersize=4, capsize=3, label=title, color=f"C{k % 10}")
    axis.set_xscale("log")
    axis.set_xticks(xs, [f"{x:,}" for x in xs])
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel="top-1, %")
    axis.legend(fontsize=8)


def plot_curves(axis: Axes, records: list[Record], methods: Mapping[str, str], title: str) -> None:
    """Top-1 over the epochs of fine-tuning, a curve per method: the mean over the seeds.

    Args:
        axis: What is drawn on.
        records: The runs of one dataset.
        methods: {method: title}.
        title: The title of the chart.
    """
    for k, (method, label) in enumerate(methods.items()):
        curves = [np.array(record["curve"]) for record in records if record["method"] == method]
        curves = [curve for curve in curves if len(curve) and curve.shape == curves[0].shape]
        if curves:
            epochs, mean = curves[0][:, 0], np.mean([curve[:, 1] for curve in curves], 0)
            axis.plot(epochs, mean, marker=".", label=label, color=f"C{k % 10}")
    axis.set(xlabel="epoch of fine-tuning", ylabel="top-1, %", title=shown_name(title, 0))
    axis.legend(fontsize=8)
