"""The section of the results page on pretrainings of equal time, compare.py's --minutes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .figures import plot_bars
from .spec import RANDOM, SAME
from .stats import MEASURES, Numbers, display_name, mean_std, sort_methods, unique, values
from .store import Record
from .tables import TOP1, markdown_table

if TYPE_CHECKING:
    from .page import Page

Column = tuple[str, int, str]  # dataset, number of images (0: all), how they are chosen


def is_timed(record: Record) -> bool:
    """Whether a run was pretrained for a time, and not for a number of crops."""
    return bool(record.get("minutes"))


def add_equal_time(page: Page, records: list[Record]) -> None:
    """Methods, variants too, by datasets and numbers of images: a section for each time and length of fine-tuning.

    Args:
        page: Where it goes.
        records: All runs; of those without a time only training from scratch is shown.
    """
    own = [record for record in records if record["target"] == SAME]
    timed = [record for record in own if is_timed(record)]
    for minutes, tuning in sorted({(record["minutes"], record["finetune_budget"]) for record in timed}):
        mine = [r for r in timed if (r["minutes"], r["finetune_budget"]) == (minutes, tuning)]
        columns = {column_of(record): _title(column_of(record)) for record in mine}
        scratch = [r for r in own if r["method"] == RANDOM and r["finetune_budget"] == tuning]
        mine += [record for record in scratch if column_of(record) in columns]
        _add_minutes(page, mine, columns, f"{minutes:g} minutes, then {tuning:,} crops")


def _add_minutes(page: Page, records: list[Record], columns: dict[Column, str], length: str) -> None:
    """The tables and the chart of one length of both trainings."""
    rows = sort_methods(record["method"] for record in records)

    def get(measure: str, method: str, column: Column) -> Numbers:
        dataset, images, sampling = column
        return values(records, measure, dataset=dataset, images=images, sampling=sampling, method=method)

    machines = unique((record for record in records if is_timed(record)), "machine")
    page.add(
        f"## Equal time: {length}",
        "Every pretraining takes the same time, evaluations and checkpoints included, on the same number of cores of "
        f"its own ({'; '.join(machines)}). How many crops a method sees in it is a result.",
    )
    for measure, title in MEASURES.items():
        titles = {method: display_name(method, measure) for method in rows}
        page.add(markdown_table(titles, columns, partial(get, measure), f"{title}, %"))
    series = {method: display_name(method) for method in rows}
    name = f"equal_time_{length.replace(' ', '_').replace(',', '')}"
    page.add_figure(name, lambda axis: plot_bars(axis, columns, series, lambda c, m: get("top1", m, c), TOP1))
    page.add("### What was seen", _seen_table(records, columns, rows))


def _seen_table(records: list[Record], columns: dict[Column, str], rows: list[str]) -> str:
    """Mean number of epochs and of crops, and the minutes that passed, start to end."""
    lines = [
        "| epochs; crops; minutes, mean over the seeds | " + " | ".join(columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in rows:
        cells = []
        for column in columns:
            mine = [r for r in records if r["method"] == method and column_of(r) == column and is_timed(r)]
            epochs, crops, seconds = (
                mean_std(r[key] for r in mine)[0] if mine else 0.0 for key in ("epochs", "crops", "pretrain_seconds")
            )
            cells.append(f"{epochs:,.1f}; {crops:,.0f}; {seconds / 60:.1f}" if mine else "-")
        if set(cells) != {"-"}:
            lines.append(f"| {display_name(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def column_of(record: Record) -> Column:
    """The images of a run."""
    return record["dataset"], record["images"], record["sampling"]


def _title(column: Column) -> str:
    """The images of a column."""
    dataset, images, sampling = column
    return dataset if not images else f"{dataset}, {images:,} images" + (", random" if sampling == "random" else "")
