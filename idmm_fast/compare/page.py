"""The results page: what a sweep found, in one Markdown file with pictures, made from results.jsonl."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from matplotlib.axes import Axes

from ..config import ConfigError
from ..files import write_text
from ..plots.figure import new_figure, save_figure
from . import sections
from .equal_time import add_equal_time, is_timed
from .spec import RANDOM
from .stats import display_name, main_budgets, most_common, newest, recipe_of, row_of
from .store import RECIPE, RECIPES, Record, ResultStore


class Page:
    """A page as it grows. Its pictures go to the folder `assets` beside it.

    Args:
        path: The Markdown file; its folder is made.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._parts: list[str] = []
        self._shown: set[tuple] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, *paragraphs: str) -> None:
        """Append paragraphs, headings or tables."""
        self._parts += paragraphs

    def add_figure(self, name: str, plot: Callable[[Axes], None]) -> None:
        """Append what `plot` draws on an axis, as assets/PAGE_name.png."""
        name = name.replace(os.sep, "_")
        file = self.path.parent / "assets" / f"{self.path.stem}_{name}.png"
        file.parent.mkdir(exist_ok=True)
        figure = new_figure(9, 4.2)
        plot(figure.subplots())
        save_figure(figure, file, 90)
        self.add(f"![{name.replace('_', ' ')}](assets/{quote(file.name)})")

    def show(self, records: Iterable[Record]) -> None:
        """Note that the page has these runs."""
        self._shown.update(record["row"] for record in records)

    def others(self, records: list[Record]) -> list[Record]:
        """The runs that are not on the page yet."""
        return [record for record in records if record["row"] not in self._shown]

    def write(self) -> None:
        """Write the Markdown file."""
        write_text(self.path, "\n\n".join(part.strip("\n") for part in self._parts) + "\n")


def write_page(out: Path | str, path: Path | str | None = None) -> Path:
    """Write the page of a sweep.

    Args:
        out: The folder of results.jsonl.
        path: The page; report.md in that folder unless given.

    Returns:
        Where the page is.

    Raises:
        ConfigError: No run is finished.
    """
    out = Path(out)
    records = [record | {"row": row_of(record)} for record in newest(ResultStore(out).records)]
    if not records:
        raise ConfigError(f"{out}/results.jsonl holds no finished run; run idmm-fast compare with --out {out} first")
    page, counted = Page(path or out / "report.md"), _counted(records)
    page.add("# Results", _introduction(records, counted), _recipes(records))
    add_equal_time(page, records)
    sections.add_main(page, counted)
    sections.add_fewer_images(page, counted)
    sections.add_transfer(page, counted)
    sections.add_sampling(page, counted)
    sections.add_variants(page, counted)
    sections.add_length(page, counted, "budget")
    sections.add_length(page, counted, "finetune_budget")
    sections.add_others(page, page.others(records))
    mixed = _mixed_settings(records)
    if mixed:
        page.add("## Settings", *mixed)
    page.write()
    return page.path


def _counted(records: list[Record]) -> list[Record]:
    """The runs of equal numbers of crops; none where all that is pretrained has equal time."""
    found = [record for record in records if not is_timed(record)]
    return [] if len(found) < len(records) and all(r["method"] == RANDOM for r in found) else found


def _introduction(records: list[Record], counted: list[Record]) -> str:
    """How many runs, of what network, and what is compared; counted: see `_counted`."""
    seeds = ", ".join(map(str, sorted({record["seed"] for record in records})))
    budgets = "; ".join(f"{d}: {p:,} and {f:,}" for d, (p, f) in main_budgets(counted).items())
    equal = (
        "On one dataset every method sees the same number of crops in pretraining, and every network, pretrained or "
        f"not, in fine-tuning ({budgets}). "
        if counted
        else "Every pretraining takes the same time, and every fine-tuning sees the same number of crops. "
    )
    return (
        f"{len(records)} runs, seeds {seeds}; mean ± standard deviation over the seeds, the best mean of a column in "
        f"bold. {_network(records)}{equal}Top-1 on the test images after the last epoch; kNN and the linear probe "
        "evaluate the frozen features with the training images' labels"
        f"{_evaluated_at(records)}."
    )


def _network(records: list[Record]) -> str:
    """The size of the network, if the records tell one."""
    sizes = {record["parameters"] for record in records if "parameters" in record}
    return f"The backbone has {sizes.pop() / 1e6:.1f} M parameters. " if len(sizes) == 1 else ""


def _evaluated_at(records: list[Record]) -> str:
    """At how many pixels frozen features are evaluated, and which methods' differ."""
    sizes = {record["method"]: record["evaluated_at"] for record in records if "evaluated_at" in record}
    most = most_common(sizes.values())
    others = "".join(f", {display_name(m)} at {size}" for m, size in sizes.items() if size != most)
    return f", at {most} pixels{others}" if most else ""


def _recipes(records: list[Record]) -> str:
    """Which versions of the training code the runs are of, see RECIPES."""
    used = sorted({recipe_of(record) for record in records})
    named = "; ".join(f"{r} ({RECIPES.get(r, 'not known here')})" for r in used)
    if len(used) == 1:
        now = f" It is {RECIPE} now ({RECIPES[RECIPE]})." if used[0] < RECIPE else ""
        return f"All runs are of one version of the training code: {named}.{now}"
    return (
        f"The runs are of several versions of the training code: {named}. Where a row has runs of several, only the "
        "newest are shown. A mean or a difference is of one version. In a table the number of an older version stands "
        "in brackets behind its figures, which do not compare with the others."
    )


def _mixed_settings(records: list[Record]) -> list[str]:
    """A line per row whose runs differ in their settings."""
    seen: dict[tuple, dict[str, list[int]]] = {}
    for record in records:
        settings = "-".join(record["settings"].split("-")[:2])  # without the rows, which each seed samples for itself
        seen.setdefault(row_of(record), {}).setdefault(settings, []).append(record["seed"])
    return [
        f"- {'/'.join(map(str, row))}: not all seeds have the same settings: "
        + ", ".join(f"{settings}: seeds {sorted(seeds)}" for settings, seeds in kinds.items())
        for row, kinds in seen.items()
        if len(kinds) > 1
    ]
