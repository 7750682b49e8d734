"""Markdown tables of a sweep's results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .spec import RANDOM
from .stats import (
    MEASURES,
    Numbers,
    differences,
    display_name,
    mean_std,
    methods_of,
    recipe_of,
    sort_methods,
    unique,
    values,
)
from .store import Record

TOP1 = "fine-tuned, top-1, %"
GAIN = "gain over training from scratch, points"


def format_mean_std(numbers: Numbers) -> str:
    """ "41.2 ± 0.3"; "41.2" of one number, "-" of none."""
    if not numbers:
        return "-"
    mean, deviation = mean_std(numbers.values())
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if np.isfinite(deviation) else "")


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of these cells."""
    first, *others = (f"| {' | '.join(cells)} |\n" for cells in [head, *rows])
    return "".join([first, "|---" * len(head) + "|\n", *others])


def markdown_table(
    rows: Mapping[Any, str],
    columns: Mapping[Any, str],
    get: Callable[[Any, Any], Numbers],
    corner: str = "",
    mark_best: bool = True,
) -> str:
    """A table of means and standard deviations.

    Numbers of an older recipe than the newest in the table have its number in brackets behind them.

    Args:
        rows: {key: title}.
        columns: {key: title}.
        get: The numbers of a row's and a column's key.
        corner: The title of the column of titles.
        mark_best: Set the highest mean of a column in bold, where all of the column is of one recipe.
    """
    found = {(r, c): get(r, c) for r in rows for c in columns}
    means = {place: np.mean(list(numbers.values())) for place, numbers in found.items() if numbers}
    recipes = {place: max(numbers)[0] for place, numbers in found.items() if numbers}
    newest = max(recipes.values(), default=0)
    best = {}
    for c in columns:
        places = [(r, c) for r in rows if (r, c) in means]
        if mark_best and len(rows) > 1 and len({recipes[place] for place in places}) == 1:
            best[c] = max(means[place] for place in places)
    lines = []
    for r, title in rows.items():
        cells = []
        for c in columns:
            recipe = recipes.get((r, c), newest)
            text = format_mean_std(found[r, c]) + (f" ({recipe})" if recipe != newest else "")
            cells.append(f"**{text}**" if (r, c) in means and means[r, c] == best.get(c) else text)
        lines.append([title, *cells])
    return text_table([corner, *columns.values()], lines)


def main_table(main: list[Record], measure: str = "top1") -> str:
    """Methods by datasets, mean ± standard deviation over the seeds, the best of a column in bold.

    Args:
        main: Those of `main_records`.
        measure: A key of MEASURES.
    """
    datasets = {d: d for d in unique(main, "dataset")}

    def get(method: str, dataset: str) -> Numbers:
        return values(main, measure, method=method, dataset=dataset)

    return markdown_table(methods_of(main, measure), datasets, get, f"{MEASURES[measure]}, %")


def gain_table(main: list[Record]) -> str:
    """Methods by datasets: fine-tuned accuracy less that of training from scratch, seed by seed; see `main_table`."""
    datasets = {d: d for d in unique(main, "dataset")}
    methods = {m: title for m, title in methods_of(main).items() if m != RANDOM}

    def get(method: str, dataset: str) -> Numbers:
        scratch = values(main, "top1", method=RANDOM, dataset=dataset)
        return differences(values(main, "top1", method=method, dataset=dataset), scratch)

    return markdown_table(methods, datasets, get, GAIN)


def cost_table(main: list[Record]) -> str:
    """What a method costs: crops, minutes of pretraining and of fine-tuning, memory; see `main_table`."""
    head = ["mean over the runs", "crops seen", "pretraining, min", "crops/s", "fine-tuning, min", "peak memory, MB"]
    rows = []
    for method in sort_methods(record["method"] for record in main):
        mine = [record for record in main if record["method"] == method]
        mine = [record for record in mine if recipe_of(record) == max(map(recipe_of, mine))]
        finetuning = f"{np.mean([record['finetune_seconds'] for record in mine]) / 60:.1f}"
        if method == RANDOM:
            rows.append([display_name(method), "0", "0", "-", finetuning, "-"])
            continue
        crops, seconds, peak = (
            np.array([record[key] for record in mine]) for key in ("crops", "pretrain_seconds", "peak_mb")
        )
        speed = f"{crops.sum() / seconds.sum():,.0f}"
        cells = [f"{crops.mean():,.0f}", f"{seconds.mean() / 60:.1f}", speed, finetuning, f"{peak.mean():,.0f}"]
        rows.append([display_name(method), *cells])
    return text_table(head, rows)
