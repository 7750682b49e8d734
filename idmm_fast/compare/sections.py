"""The sections of the results page. A section is left out where no runs are its subject."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import plot_bars, plot_curves, plot_lines
from .spec import RANDOM, SAME
from .stats import (
    MEASURES,
    Numbers,
    by_equal_budget,
    differences,
    display_name,
    main_records,
    mean_std,
    methods_of,
    sort_methods,
    unique,
    values,
    with_budget,
)
from .store import Record
from .tables import GAIN, TOP1, cost_table, format_mean_std, gain_table, main_table, markdown_table

if TYPE_CHECKING:
    from .page import Page

Budget = tuple[int, str]  # (number of crops, "in all" or "of each image")


def add_main(page: Page, records: list[Record]) -> None:
    """Methods by datasets, gains, cost and curves."""
    main = main_records(records)
    if not main:
        return
    datasets = {d: d for d in unique(main, "dataset")}
    methods = methods_of(main)
    page.show(main)

    def get(dataset: str, method: str) -> Numbers:
        return values(main, "top1", dataset=dataset, method=method)

    page.add("## Methods", *(main_table(main, measure) for measure in MEASURES))
    page.add_figure("methods", lambda axis: plot_bars(axis, datasets, methods, get, TOP1))
    page.add(gain_table(main), "### Cost", cost_table(main))
    jobs = sorted({record["jobs"] for record in main})
    together = f"{' or '.join(map(str, jobs))} pretraining{'s' if jobs != [1] else ''} at a time"
    shared = ", which share the machine's cores" if jobs != [1] else ""
    page.add(f"Times are those of {together}{shared}; memory is that of the whole process.")
    first = next(iter(datasets))
    of_first = [record for record in main if record["dataset"] == first]
    page.add_figure("curves", lambda axis: plot_curves(axis, of_first, methods, first))


def add_fewer_images(page: Page, records: list[Record]) -> None:
    """Top-1 against the number of images, a section for every budget that several numbers of images share."""
    own = [r for r in _of_methods(records) if r["target"] == SAME and r["sampling"] == "balanced"]

    def images_of(record: Record) -> int:
        return record["images"]

    def labels_of(record: Record) -> int:
        return record["labels"]

    for dataset in unique((record for record in own if record["images"]), "dataset"):
        # Records of before say only how many images a fine-tuning took: all that there are, in those.
        mine = [r | {"images": r.get("pretraining_images", r["images"] or r["labels"])} for r in own]
        mine = [record for record in mine if record["dataset"] == dataset]
        most = max(map(images_of, mine))
        few = {images_of(record) for record in mine if images_of(record) < most} or {most}
        for tuning, tuning_unit, tuned in by_equal_budget(mine, "finetune_budget", labels_of):
            scratch = [record for record in tuned if not record["budget"]]
            pretrained = [record for record in tuned if record["budget"]]
            for crops, unit, group in by_equal_budget(pretrained, "budget", images_of):
                if few & set(map(images_of, group)):
                    _add_sizes(page, dataset, group + scratch, (crops, unit), (tuning, tuning_unit))


def _add_sizes(page: Page, dataset: str, records: list[Record], budget: Budget, tuning: Budget) -> None:
    """Top-1 against the number of images, at one budget of each training."""
    sizes = sorted({record["images"] for record in records if record["budget"]})
    methods = methods_of(record for record in records if record["images"] in (sizes[:-1] or sizes))
    columns = {n: f"{n:,}" for n in sizes}
    page.show(record for record in records if record["images"] in sizes and record["method"] in methods)

    def get(images: int, method: str) -> Numbers:
        return values(records, "top1", method=method, images=images)

    finetuning = f"{tuning[0]:,} {tuning[1]}"
    crops = f"{budget[0]:,} crops {budget[1]}"
    page.add(
        f"## Fewer images: {dataset}, {crops}, then {finetuning}",
        "Both trainings use this many images, class-balanced, sampled anew for each seed. Whatever their number, "
        f"pretraining sees {crops}, fine-tuning {finetuning}.",
        markdown_table(methods, columns, lambda m, n: get(n, m), TOP1),
    )
    name = "_".join(f"{crops}{'' if unit == 'in all' else 'x'}" for crops, unit in (budget, tuning))
    page.add_figure(f"fewer_{dataset}_{name}", partial(plot_lines, xs=sizes, series=methods, get=get, xlabel="images"))
    pretrained = {m: title for m, title in methods.items() if m != RANDOM}
    page.add(markdown_table(pretrained, columns, lambda m, n: differences(get(n, m), get(n, RANDOM)), GAIN))


def add_transfer(page: Page, records: list[Record]) -> None:
    """Pretrained on one dataset, fine-tuned on another, a section for every budget of fine-tuning."""
    full = [record for record in records if not record["images"]]
    away = [record for record in full if record["target"] not in (SAME, record["dataset"])]
    pretrained = {(record["dataset"], record["method"], record["budget"]) for record in away}
    home = [
        record
        for record in full
        if record["target"] == SAME
        and (not record["budget"] or (record["dataset"], record["method"], record["budget"]) in pretrained)
    ]
    for tuning, unit, tuned in by_equal_budget(away + home, "finetune_budget", lambda record: record["labels"]):
        transferred = [record for record in tuned if record["target"] != SAME]
        if transferred:
            _add_targets(page, transferred, tuned, f"{tuning:,} crops {unit}")


def _add_targets(page: Page, away: list[Record], records: list[Record], tuning: str) -> None:
    """Top-1 on other datasets, `away`, beside that on the own one and from scratch, which are in `records` too."""
    sources = unique(away, "dataset")
    targeted = {record["target"] for record in away}
    targets = {t: t for t in [*(s for s in sources if s in targeted), *sorted(targeted - set(sources))]}
    lengths = {s: sorted({record["budget"] for record in away if record["dataset"] == s}) for s in sources}
    methods = sort_methods(record["method"] for record in away)

    def get(row: tuple[str | None, int, str], target: str) -> Numbers:
        source, crops, method = row
        is_home = source in (target, None)
        where = {"dataset": target if is_home else source, "target": SAME if is_home else target}
        return values(records, "top1", budget=crops, method=method, **where)

    rows: dict[Any, str] = {
        (s, n, m): f"{s}, {n:,}, {display_name(m)}" for s in sources for n in lengths[s] for m in methods
    } | {(None, 0, RANDOM): display_name(RANDOM)}
    means = []
    for method in methods:
        pairs = ((s, n, t) for s in sources for n in lengths[s] for t in targets if s != t)
        found = [numbers for numbers in (get((s, n, method), t) for s, n, t in pairs) if numbers]
        newest = max(recipe for numbers in found for recipe, _ in numbers)
        mean = np.mean([np.mean(list(numbers.values())) for numbers in found if max(numbers)[0] == newest])
        means.append(f"{display_name(method)} {mean:.1f}")
    home = [record for record in records if record["target"] == SAME and record["dataset"] in targets]
    page.show(away)
    page.show(r for r in home if not r["budget"] or (r["dataset"], r["budget"], r["method"]) in rows)
    page.add(
        f"## Transfer, fine-tuned for {tuning}",
        "Rows: the dataset and the number of crops of pretraining. Columns: the dataset of fine-tuning and evaluation.",
        markdown_table({r: t for r, t in rows.items() if any(get(r, t) for t in targets)}, targets, get, TOP1),
        "Mean over all pairs of different datasets: " + "; ".join(means) + ".",
    )


def add_sampling(page: Page, records: list[Record]) -> None:
    """Class-balanced subsets against random ones."""
    sampled = [record for record in records if record["images"] and record["target"] == record["dataset"]]
    kinds = {k: k for k in ("balanced", "random") if any(record["sampling"] == k for record in sampled)}
    if len(kinds) < 2:
        return
    page.show(sampled)
    keys = ("method", "images", "dataset", "budget", "finetune_budget")
    rows: dict[tuple, str] = {}
    for record in sampled:
        method, images, dataset, crops, tuning = row = tuple(record[key] for key in keys)
        rows[row] = f"{display_name(method)} on {images:,} of {dataset}, {crops:,} crops, then {tuning:,}"

    def get(row: tuple, kind: str) -> Numbers:
        return values(sampled, "top1", sampling=kind, **dict(zip(keys, row)))

    page.add(
        "## Class-balanced or random",
        "Pretrained on this many images, class-balanced or random, then fine-tuned on all.",
        markdown_table(rows, kinds, get, TOP1, mark_best=False),
    )


def add_variants(page: Page, records: list[Record]) -> None:
    """Methods with one thing changed, beside the methods themselves, a section for every pair of budgets."""
    keys = ("dataset", "budget", "finetune_budget")
    full = [record for record in records if not record["images"] and record["target"] == SAME]
    variants = [record for record in full if record["method"] != record["base"]]
    for place in dict.fromkeys(tuple(record[key] for key in keys) for record in variants):
        mine = [record for record in full if tuple(record[key] for key in keys) == place]
        rows: dict[str, str] = {}
        for base in sort_methods(record["base"] for record in mine if record["method"] != record["base"]):
            changed = sort_methods(r["method"] for r in mine if r["base"] == base != r["method"])
            rows |= {m: display_name(m) for m in (base, *changed)}

        dataset, crops, tuning = place
        page.show(record for record in mine if record["method"] in rows)
        page.add(f"## Variants: {dataset}, {crops:,} crops, then {tuning:,}")
        _add_measures(page, mine, rows, f"variants_{dataset}_{crops}_{tuning}")


def _add_measures(page: Page, records: list[Record], methods: dict[str, str], name: str) -> None:
    """A table and a chart of all measures."""

    def get(measure: str, method: str) -> Numbers:
        return values(records, measure, method=method)

    page.add(markdown_table(methods, MEASURES, lambda m, k: get(k, m)))
    page.add_figure(name, partial(plot_bars, groups=MEASURES, series=methods, get=get, ylabel="%"))


def add_length(page: Page, records: list[Record], which: str) -> None:
    """Top-1 against the length of one training, a section for every length of the other one.

    Args:
        page: Where it goes.
        records: What is shown.
        which: "budget" or "finetune_budget", the one that varies.
    """
    trainings = {"budget": "pretraining", "finetune_budget": "fine-tuning"}
    (other,) = set(trainings) - {which}
    own = [r for r in _of_methods(records) if r["target"] == SAME and r["sampling"] == "balanced"]
    for dataset, images in dict.fromkeys((record["dataset"], record["images"]) for record in own):
        here = [record for record in own if (record["dataset"], record["images"]) == (dataset, images)]
        for crops in sorted({record[other] for record in here if record[other]}):
            mine = with_budget(here, other, crops)
            lengths: dict[str, set[int]] = {}
            for record in mine:
                lengths.setdefault(record["method"], set()).add(record[which])
            several = {method: found for method, found in lengths.items() if len(found) > 1}
            if set(several) - {RANDOM}:
                some = f"{images:,} images of " if images else ""
                page.add(f"## Length of {trainings[which]}: {some}{dataset}, {crops:,} crops of {trainings[other]}")
                shown = {m: display_name(m) for m in sort_methods(several)}
                name = f"{which}_{dataset}{f'_{images}' if images else ''}_{crops}"
                _add_lengths(page, mine, which, (shown, sorted(set.union(*several.values()))), name)


def _add_lengths(
    page: Page, records: list[Record], which: str, axes: tuple[dict[str, str], list[int]], name: str
) -> None:
    """A table of methods by lengths, `axes`, the level of training from scratch, and a chart."""
    methods, lengths = axes
    page.show(record for record in records if record["method"] in methods)

    def get(crops: int, method: str) -> Numbers:
        return values(records, "top1", method=method, **{which: crops})

    page.add(markdown_table(methods, {n: f"{n:,} crops" for n in lengths}, lambda m, n: get(n, m), TOP1))
    scratch = values(records, "top1", method=RANDOM) if which == "budget" else {}
    if scratch:
        page.show(record for record in records if record["method"] == RANDOM)
        page.add(f"Trained from scratch: {format_mean_std(scratch)}.")
    level = mean_std(scratch.values())[0] if scratch else None
    xlabel = "crops of pretraining" if which == "budget" else "crops of fine-tuning"
    page.add_figure(name, partial(plot_lines, xs=lengths, series=methods, get=get, xlabel=xlabel, scratch=level))


def add_others(page: Page, records: list[Record]) -> None:
    """A table of the runs that no other section shows."""
    if not records:
        return
    rows: dict[tuple, str] = {}
    for record in records:
        images = f"{record['images']:,} {record['sampling']} of " if record["images"] else ""
        length = f"{record['minutes']:g} minutes" if record.get("minutes") else f"{record['budget']:,} crops"
        target = "" if record["target"] == SAME else f" of {record['target']}"
        name = f"{display_name(record['method'])} on {images}{record['dataset']}"
        rows[record["row"]] = f"{name}, {length}, then {record['finetune_budget']:,} crops{target}"

    def get(row: tuple, measure: str) -> Numbers:
        return values(records, measure, row=row)

    page.add("## Other runs", markdown_table(rows, MEASURES, get, mark_best=False))


def _of_methods(records: list[Record]) -> list[Record]:
    """The runs of the methods themselves, not of their variants."""
    return [record for record in records if record["method"] == record["base"]]
