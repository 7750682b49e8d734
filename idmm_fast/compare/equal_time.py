"""The section of the results page on pretrainings of equal time, compare.py's --minutes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .figures import plot_bars
from .spec import RANDOM, SAME
from .stats import MEASURES, Numbers, differences, display_name, is_improved, mean_std, sort_methods, values
from .store import Record
from .tables import TOP1, format_mean_std, markdown_table, text_table

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
        page.show(mine)
        _add_minutes(page, mine, columns, f"{minutes:g} minutes, then {tuning:,} crops")


def _add_minutes(page: Page, records: list[Record], columns: dict[Column, str], length: str) -> None:
    """The tables and the chart of one length of both trainings."""

    def get(measure: str, method: str, column: Column) -> Numbers:
        dataset, images, sampling = column
        return values(records, measure, dataset=dataset, images=images, sampling=sampling, method=method)

    parts = _parts(records)
    rows = sort_methods({record["method"] for record in records}.difference(*parts.values()))
    has_improved = any(map(is_improved, rows))
    machines = list(dict.fromkeys(str(r.get("timed_on", r["machine"])) for r in records if is_timed(r)))
    page.add(
        f"## Equal time: {length}",
        "Every pretraining has the same time on the same number of cores of its own "
        f"({'; '.join(machines)}). How many crops a method sees in it is a result."
        + (" Improved: with the recipe's Muon, rate and colour jitter." * has_improved),
    )
    if rows:  # else all are variants
        for measure, title in MEASURES.items():
            titles = {method: display_name(method, measure) for method in rows}
            page.add(markdown_table(titles, columns, partial(get, measure), f"{title}, %"))
        page.add("### The best of each column", _lead_table(rows, columns, get))
        series = {method: display_name(method) for method in rows}
        name = f"equal_time_{length.replace(' ', '_').replace(',', '')}"
        page.add_figure(name, lambda axis: plot_bars(axis, columns, series, lambda c, m: get("top1", m, c), TOP1))
    for base, variants in parts.items():
        titles = {method: display_name(method) for method in [base, *sort_methods(variants)]}
        own = {c: title for c, title in columns.items() if any(get("top1", v, c) for v in variants)}
        page.add(f"### Variants of {display_name(base)}", markdown_table(titles, own, partial(get, "top1"), TOP1))
    page.add("### What was seen", _seen_table(records, columns, sort_methods(record["method"] for record in records)))


def _parts(records: list[Record]) -> dict[str, set[str]]:
    """{method: its variants} of those that have several, which get a table of their own."""
    variants: dict[str, set[str]] = {}
    for record in records:
        if record["base"] != record["method"]:
            variants.setdefault(record["base"], set()).add(record["method"])
    return {base: found for base, found in variants.items() if len(found) > 1}


def _lead_table(rows: list[str], columns: dict[Column, str], get: Callable[[str, str, Column], Numbers]) -> str:
    """For each measure the best method of a column and its lead over the second, seed by seed."""
    lines = []
    for measure, title in MEASURES.items():
        cells = []
        for column in columns:
            found = {method: numbers for method in rows if (numbers := get(measure, method, column))}
            ranked = sorted(found, key=lambda method: -mean_std(found[method].values())[0])
            if len(ranked) < 2:
                cells.append("-")
                continue
            lead = format_mean_std(differences(found[ranked[0]], found[ranked[1]]))
            cells.append(f"{display_name(ranked[0], measure)}: {lead} ({display_name(ranked[1], measure)})")
        lines.append([title, *cells])
    return text_table(["lead over the second, points", *columns.values()], lines)


def _seen_table(records: list[Record], columns: dict[Column, str], rows: list[str]) -> str:
    """Mean number of epochs and of crops."""
    lines = []
    for method in rows:
        cells = []
        for column in columns:
            mine = [r for r in records if column_of(r) == column and is_timed(r)]
            found = [values(mine, measure, method=method) for measure in ("epochs", "crops")]
            cells.append("; ".join(f"{mean_std(numbers.values())[0]:,.0f}" for numbers in found if numbers) or "-")
        if set(cells) != {"-"}:
            lines.append([display_name(method), *cells])
    return text_table(["epochs; crops", *columns.values()], lines)


def column_of(record: Record) -> Column:
    """The images of a run."""
    return record["dataset"], record["images"], record["sampling"]


def _title(column: Column) -> str:
    """The images of a column."""
    dataset, images, sampling = column
    return dataset if not images else f"{dataset}, {images:,} images" + (", random" if sampling == "random" else "")
