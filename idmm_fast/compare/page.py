"""What a comparison found: tables, bars and curves in one Markdown page, from results.jsonl."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..config import ConfigError
from .runner import RANDOM, RECIPE, RECIPES, Results

NAMES = {
    RANDOM: "random initialisation",
    "instance": "instance discrimination",
    "idmm": "IDMM",
    "simclr": "SimCLR",
    "supcon": "SupCon (uses labels)",
    "moco_v2": "MoCo v2",
    "moco_v3": "MoCo v3",
    "dino": "DINO",
}
MEASURES = {"top1": "fine-tuned, top-1", "knn20": "kNN, k = 20", "linear": "linear probe"}


def name_of(method):
    """The method as a reader calls it; a variant as its own name says."""
    return NAMES.get(method, method.replace("_", " "))


def order(methods):
    """The known ones as they stand in NAMES, then the others by name."""
    return sorted(set(methods), key=lambda m: (list(NAMES).index(m) if m in NAMES else len(NAMES), m))


def recipe_of(line):
    """The number of its recipe, see compare.RECIPES."""
    return line.get("recipe", 1)


def newest(lines):
    """Of cells that differ in the seed alone, those of the newest recipe."""
    row = ("dataset", "images", "sampling", "method", "budget", "target", "finetune_budget")
    last = {}
    for line in lines:
        key = tuple(line[k] for k in row)
        last[key] = max(recipe_of(line), last.get(key, 0))
    return [line for line in lines if recipe_of(line) == last[tuple(line[k] for k in row)]]


def values(lines, measure, **wanted):
    """{(recipe, seed): number} of `measure` among the lines that have these fields; of several settings the newest."""
    found = [line for line in lines if all(line[k] == v for k, v in wanted.items()) and line.get(measure) is not None]
    return {(recipe_of(line), line["seed"]): line[measure] for line in found}


def spread(numbers):
    """(mean, sample standard deviation; nan of one number)."""
    numbers = np.array(list(numbers), float)
    return numbers.mean(), numbers.std(ddof=1) if numbers.size > 1 else np.nan


def differences(found, base):
    """{(recipe, seed): number} of two, seed by seed, where both have one."""
    return {seed: found[seed] - base[seed] for seed in found if seed in base}


def cell(numbers):
    """ "41.2 ± 0.3", without the spread where there is one number, "-" where there is none."""
    if not numbers:
        return "-"
    mean, deviation = spread(numbers.values())
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if np.isfinite(deviation) else "")


def table(rows, columns, get, first="", best=True):
    """Markdown: rows and columns are {key: title}, get(row, column) gives {(recipe, seed): number}. best: the highest mean
    of each column in bold, if all are of one recipe. Figures of older recipes than the newest have its number behind them."""
    found = {(r, c): get(r, c) for r in rows for c in columns}
    means = {place: np.mean(list(numbers.values())) for place, numbers in found.items() if numbers}
    recipe = {place: max(numbers)[0] for place, numbers in found.items() if numbers}
    last = max(recipe.values(), default=0)
    top = {}
    for c in columns:
        mine = [(r, c) for r in rows if (r, c) in means]
        top[c] = max(means[p] for p in mine) if best and len(rows) > 1 and len({recipe[p] for p in mine}) == 1 else None
    lines = [f"| {first} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for r, title in rows.items():
        cells = []
        for c in columns:
            text = cell(found[r, c]) + (f" ({recipe[r, c]})" if recipe.get((r, c), last) != last else "")
            cells.append(f"**{text}**" if (r, c) in means and means[r, c] == top[c] else text)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


class Page:
    """The page as it grows, and where its pictures go."""

    def __init__(self, path):
        self.path, self.text = Path(path), []
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def say(self, *paragraphs):
        self.text += paragraphs

    def picture(self, name, draw):
        """`draw(axis)` as a PNG beside the page."""
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        name = name.replace(os.sep, "_")
        file = self.path.with_name(f"{self.path.stem}_{name}.png")
        figure.savefig(file, dpi=90)
        self.say(f"![{name.replace('_', ' ')}]({file.name})")

    def write(self):
        self.path.write_text("\n\n".join(part.strip("\n") for part in self.text) + "\n", encoding="utf-8")


def bars(axis, groups, series, get, ylabel):
    """Bars with error bars: a cluster for each of `groups`, a colour for each of `series`, points for the seeds."""
    width, colours = 0.8 / len(series), colormaps["tab10" if len(series) <= 10 else "tab20"].colors
    for k, (key, title) in enumerate(series.items()):
        found = [get(g, key) for g in groups]
        at = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
        stats = [spread(f.values()) if f else (np.nan, np.nan) for f in found]
        axis.bar(
            at,
            [m for m, _ in stats],
            width * 0.95,
            yerr=np.nan_to_num([s for _, s in stats]),
            capsize=2,
            label=title,
            color=colours[k % 20],
        )
        for x, f in zip(at, found):
            axis.plot([x] * len(f), list(f.values()), "k.", markersize=3)
    axis.set_xticks(np.arange(len(groups)), list(groups.values()))
    axis.set(ylabel=ylabel)
    axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def lines_of(axis, xs, series, get, xlabel, ylabel, level=None):
    """A curve with error bars for each of `series` over the numbers `xs`; a dashed line at `level`, that of random initialisation."""
    if level is not None:
        axis.axhline(level, color="gray", linestyle="--", label=name_of(RANDOM))
    for k, (key, title) in enumerate(series.items()):
        found = [(x, get(x, key)) for x in xs]
        points = [(x, *spread(f.values())) for x, f in found if f]
        if points:
            x, mean, deviation = zip(*points)
            axis.errorbar(
                x, mean, np.nan_to_num(deviation), marker="o", markersize=4, capsize=3, label=title, color=f"C{k % 10}"
            )
    axis.set_xscale("log")
    axis.set_xticks(xs, [f"{x:,}" for x in xs])
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8)


def usual(numbers):
    """The one that most have, the largest of several; 0 of none."""
    numbers = [n for n in numbers if n]
    return max(sorted(set(numbers), reverse=True), key=numbers.count) if numbers else 0


def with_budget(lines, budget, crops):
    """Those lines whose `budget`, a key, is `crops`; random initialisation goes with every length of pretraining."""
    return [line for line in lines if line[budget] in (0, crops)]


def alike(lines, budget, images_of):
    """[(crops, "of each image" or "in all", lines)]: those with as many crops of `budget`, a key: by the image where several
    numbers of images have so many; in all likewise, and where lines are left that were not among those by the image."""
    told, groups = [], []
    for unit, crops in (
        ("of each image", lambda line: round(line[budget] / images_of(line))),
        ("in all", lambda line: line[budget]),
    ):
        for amount in sorted({crops(line) for line in lines if line[budget]}):
            group = [line for line in lines if line[budget] and crops(line) == amount]
            alone = len({images_of(line) for line in group}) < 2
            if not alone or (unit == "in all" and not all(line in told for line in group)):
                groups.append((amount, unit, group))
                told += group
    return groups


def main_lines(lines):
    """What the main table is made of: all images of a dataset for both trainings, the methods themselves, and the budgets that most cells of a dataset have."""
    own = [
        line
        for line in newest(lines)
        if not line["images"] and line["target"] == "same" and line["method"] == line["like"]
    ]
    main = []
    for dataset in dict.fromkeys(line["dataset"] for line in own):
        mine = [line for line in own if line["dataset"] == dataset]
        for budget in ("budget", "finetune_budget"):
            mine = with_budget(mine, budget, usual(line[budget] for line in mine))
        main += mine
    return main


def budgets(lines):
    """{dataset: (crops of pretraining, crops of fine-tuning)} of the main table."""
    main = main_lines(lines)
    return {
        d: tuple(usual(line[k] for line in main if line["dataset"] == d) for k in ("budget", "finetune_budget"))
        for d in dict.fromkeys(line["dataset"] for line in main)
    }


def main_table(lines, measure="top1"):
    """Methods by datasets, mean ± standard deviation over the seeds, best in bold."""
    main = main_lines(lines)
    datasets = {d: d for d in dict.fromkeys(line["dataset"] for line in main)}
    methods = {m: name_of(m) for m in order(line["method"] for line in main)}
    return table(methods, datasets, lambda m, d: values(main, measure, method=m, dataset=d), f"{MEASURES[measure]}, %")


def gains(lines):
    """Methods by datasets: the difference to random initialisation, seed by seed."""
    main = main_lines(lines)
    datasets = {d: d for d in dict.fromkeys(line["dataset"] for line in main)}
    methods = {m: name_of(m) for m in order(line["method"] for line in main) if m != RANDOM}

    def get(m, d):
        return differences(values(main, "top1", method=m, dataset=d), values(main, "top1", method=RANDOM, dataset=d))

    return table(methods, datasets, get, "gain over random initialisation, points")


def costs(lines):
    """What a method costs: crops seen, minutes of pretraining and of fine-tuning, memory."""
    main = main_lines(lines)
    rows = [
        "| on average over the cells | crops seen | pretraining, min | crops/s | fine-tuning, min | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for method in order(line["method"] for line in main):
        mine = [line for line in main if line["method"] == method]
        mine = [line for line in mine if recipe_of(line) == max(map(recipe_of, mine))]

        def mean(key, mine=mine):
            return np.mean([line[key] for line in mine])

        if method == RANDOM:
            rows.append(f"| {name_of(method)} | 0 | 0 | - | {mean('finetune_seconds') / 60:.1f} | - |")
            continue
        speed = sum(line["crops"] for line in mine) / sum(line["pretrain_seconds"] for line in mine)
        rows.append(
            f"| {name_of(method)} | {mean('crops'):,.0f} | {mean('pretrain_seconds') / 60:.1f} | {speed:,.0f} | "
            f"{mean('finetune_seconds') / 60:.1f} | {mean('peak_mb'):,.0f} |"
        )
    return "\n".join(rows) + "\n"


def write_page(out, path=None):
    """Write the page of the comparison in the folder `out`. Returns its path. Raises ConfigError where nothing is done yet."""
    out = Path(out)
    lines = newest(Results(out).lines)
    if not lines:
        raise ConfigError(f"{out}/results.jsonl holds no finished cell; run compare.py with --out {out} first")
    page = Page(path or out / "report.md")
    main = main_lines(lines)
    seeds = sorted({line["seed"] for line in lines})
    seen = "; ".join(f"{d}: {b:,} and {t:,}" for d, (b, t) in budgets(lines).items())
    page.say(
        "# Methods against each other",
        f"{len(lines)} cells, seeds {', '.join(map(str, seeds))}; mean ± standard deviation over the seeds, the best mean of a column in bold. "
        f"On one dataset all methods see the same number of crops in pretraining, and all networks, pretrained or not, in fine-tuning ({seen}). "
        "Top-1 on the test images after the last epoch; nearest neighbours and the linear probe judge the frozen features with the training images' labels"
        f"{_judged_at(lines)}.",
        _recipes(lines),
    )
    if main:
        _main(page, lines, main)
    _fewer(page, lines)
    _transfer(page, lines)
    _sampling(page, lines)
    _variants(page, lines)
    _length(page, lines, "budget", "pretraining", "finetune_budget", "fine-tuning")
    _length(page, lines, "finetune_budget", "fine-tuning", "budget", "pretraining")
    mixed = _mixed(lines)
    if mixed:
        page.say("## Settings", *mixed)
    page.write()
    return page.path


def _judged_at(lines):
    """At how many pixels frozen features were judged, and which methods' were otherwise."""
    sizes = {line["method"]: line["judged_at"] for line in lines if "judged_at" in line}
    most = usual(list(sizes.values()))
    others = "".join(f", {name_of(m)} at {size}" for m, size in sizes.items() if size != most)
    return f", at {most} pixels{others}" if most else ""


def _recipes(lines):
    """Which lines are of which recipe."""
    used = sorted({recipe_of(line) for line in lines})
    said = "; ".join(f"{r}, {RECIPES.get(r, 'one that this version does not know')}" for r in used)
    if len(used) == 1:
        now = f" The recipe now is {RECIPE}, {RECIPES[RECIPE]}." if used[0] < RECIPE else ""
        return f"All cells are of one recipe: {said}.{now}"
    return (
        f"Cells are of several recipes: {said}. Where a row has cells of several, only the newest are shown; a mean or a "
        "difference is of one recipe; in a table the number of an older recipe stands in brackets behind its figures, which "
        "are not to be compared with the others."
    )


def _main(page, lines, main):
    datasets = {d: d for d in dict.fromkeys(line["dataset"] for line in main)}
    methods = {m: name_of(m) for m in order(line["method"] for line in main)}
    page.say("## Methods")
    for measure in MEASURES:
        page.say(main_table(lines, measure))
    page.picture(
        "methods",
        lambda axis: bars(
            axis, datasets, methods, lambda d, m: values(main, "top1", dataset=d, method=m), "fine-tuned, top-1, %"
        ),
    )
    page.say(gains(lines), "### Cost", costs(lines))
    jobs = sorted({line["jobs"] for line in main})
    together = f"{' or '.join(map(str, jobs))} pretraining{'s' if jobs != [1] else ''} at a time"
    page.say(f"Times are those of {together} on the machine's cores; memory is that of the whole process.")
    first = next(iter(datasets))

    def curves(axis):
        for k, (m, title) in enumerate(methods.items()):
            found = [np.array(line["curve"]) for line in main if line["dataset"] == first and line["method"] == m]
            found = [c for c in found if len(c) and c.shape == found[0].shape]
            if found:
                axis.plot(
                    found[0][:, 0], np.mean([c[:, 1] for c in found], 0), marker=".", label=title, color=f"C{k % 10}"
                )
        axis.set(xlabel="epoch of fine-tuning", ylabel="top-1, %", title=first)
        axis.legend(fontsize=8)

    page.picture("curves", curves)


def _fewer(page, lines):
    own = [
        line
        for line in lines
        if line["target"] == "same" and line["sampling"] == "balanced" and line["method"] == line["like"]
    ]

    def images_of(line):
        return line["images"]

    for dataset in dict.fromkeys(line["dataset"] for line in own if line["images"]):
        mine = [line | {"images": line["images"] or line["labels"]} for line in own if line["dataset"] == dataset]
        most = max(map(images_of, mine))
        few = {line["images"] for line in mine if line["images"] < most} or {most}
        for tuning, of_what, tuned in alike(mine, "finetune_budget", images_of):
            none = [line for line in tuned if not line["budget"]]
            for amount, unit, pretrained in alike([line for line in tuned if line["budget"]], "budget", images_of):
                if few & set(map(images_of, pretrained)):
                    _sizes(page, dataset, pretrained + none, (amount, unit), (tuning, of_what))


def _sizes(page, dataset, lines, pretraining, tuning):
    """Top-1 against the number of images, where trainings see so many crops: (number, "in all" or "of each image")."""
    sizes = sorted({line["images"] for line in lines if line["budget"]})
    methods = {
        m: name_of(m) for m in order(line["method"] for line in lines if line["images"] in (sizes[:-1] or sizes))
    }

    def get(n, m):
        return values(lines, "top1", method=m, images=n)

    def gain(m, n):
        return differences(get(n, m), get(n, RANDOM))

    (amount, unit), (tuned, of_what) = pretraining, tuning
    page.say(
        f"## Fewer images: {dataset}, {amount:,} crops {unit}, then {tuned:,} {of_what}",
        "Both trainings on so many images, class-balanced, drawn anew for each seed; with few images as with many, "
        f"pretraining sees {amount:,} crops {unit}, fine-tuning {tuned:,} {of_what}.",
    )
    page.say(table(methods, {n: f"{n:,}" for n in sizes}, lambda m, n: get(n, m), "fine-tuned, top-1, %"))
    draw = partial(lines_of, xs=sizes, series=methods, get=get, xlabel="images", ylabel="top-1, %")
    page.picture(
        f"fewer_{dataset}_" + "_".join(f"{n}{'' if unit == 'in all' else 'x'}" for n, unit in (pretraining, tuning)),
        draw,
    )
    page.say(
        table(
            {m: t for m, t in methods.items() if m != RANDOM},
            {n: f"{n:,}" for n in sizes},
            gain,
            "gain over random initialisation, points",
        )
    )


def _transfer(page, lines):
    whole = [line for line in lines if not line["images"]]
    others = [line for line in whole if line["target"] not in ("same", line["dataset"])]
    pretrained = {(line["dataset"], line["method"], line["budget"]) for line in others}
    home = [
        line
        for line in whole
        if line["target"] == "same"
        and (not line["budget"] or (line["dataset"], line["method"], line["budget"]) in pretrained)
    ]
    for tuning, of_what, tuned in alike(others + home, "finetune_budget", lambda line: line["labels"]):
        away = [line for line in tuned if line["target"] != "same"]
        if away:
            _targets(page, away, tuned, f"{tuning:,} crops {of_what}")


def _targets(page, others, lines, tuning):
    """Top-1 on other datasets, `others`, beside that at home and without pretraining, which are in `lines` too."""
    sources = list(dict.fromkeys(line["dataset"] for line in others))
    tuned = {line["target"] for line in others}
    targets = {t: t for t in [*(s for s in sources if s in tuned), *sorted(tuned - set(sources))]}
    page.say(
        f"## Transfer, fine-tuned for {tuning}",
        "Rows: what was pretrained on, and for how many crops; columns: what was fine-tuned on and judged.",
    )
    lengths = {s: sorted({line["budget"] for line in others if line["dataset"] == s}) for s in sources}
    methods = order(line["method"] for line in others)
    rows = {(s, n, m): f"{s}, {n:,}, {name_of(m)}" for s in sources for n in lengths[s] for m in methods} | {
        (None, 0, RANDOM): name_of(RANDOM)
    }

    def get(row, target):
        source, crops, method = row
        at_home = source in (target, None)
        return values(
            lines,
            "top1",
            dataset=target if at_home else source,
            budget=crops,
            method=method,
            target="same" if at_home else target,
        )

    page.say(
        table(
            {r: t for r, t in rows.items() if any(get(r, target) for target in targets)},
            targets,
            get,
            "fine-tuned, top-1, %",
        )
    )
    means = []
    for m in methods:
        found = [f for f in (get((s, n, m), t) for s in sources for n in lengths[s] for t in targets if s != t) if f]
        last = max(recipe for f in found for recipe, _ in f)
        means.append(f"{name_of(m)} {np.mean([np.mean(list(f.values())) for f in found if max(f)[0] == last]):.1f}")
    page.say("Mean over all pairs of different datasets: " + "; ".join(means) + ".")


def _sampling(page, lines):
    drawn = [line for line in lines if line["images"] and line["target"] == line["dataset"]]
    kinds = {k: k for k in ("balanced", "random") if any(line["sampling"] == k for line in drawn)}
    if len(kinds) < 2:
        return
    page.say(
        "## Class-balanced or random",
        "Pretrained on so many images, drawn with regard to their classes or without, then fine-tuned on all.",
    )
    keys = ("method", "images", "dataset", "budget", "finetune_budget")
    rows = {
        (
            m,
            images,
            dataset,
            crops,
            tuning,
        ): f"{name_of(m)} on {images:,} of {dataset}, {crops:,} crops, then {tuning:,}"
        for m, images, dataset, crops, tuning in (tuple(line[k] for k in keys) for line in drawn)
    }
    page.say(
        table(
            rows,
            kinds,
            lambda r, k: values(drawn, "top1", sampling=k, **dict(zip(keys, r))),
            "fine-tuned, top-1, %",
            best=False,
        )
    )


def _variants(page, lines):
    whole = [line for line in lines if not line["images"] and line["target"] == "same"]
    for dataset, crops, tuning in dict.fromkeys(
        (line["dataset"], line["budget"], line["finetune_budget"]) for line in whole if line["method"] != line["like"]
    ):
        mine = [
            line
            for line in whole
            if (line["dataset"], line["budget"], line["finetune_budget"]) == (dataset, crops, tuning)
        ]
        rows = {}
        for base in order(line["like"] for line in mine if line["method"] != line["like"]):
            rows |= {
                m: name_of(m)
                for m in (base, *order(line["method"] for line in mine if line["like"] == base != line["method"]))
            }

        def get(m, measure, mine=mine):
            return values(mine, measure, method=m)

        page.say(f"## Variants: {dataset}, {crops:,} crops, then {tuning:,}", table(rows, MEASURES, get))
        draw = partial(bars, groups=MEASURES, series=rows, get=lambda measure, m, get=get: get(m, measure), ylabel="%")
        page.picture(f"variants_{dataset}_{crops}_{tuning}", draw)


def _length(page, lines, which, training, other, other_training):
    """Top-1 against the budget `which`, a key, for the methods that have several, a section for each value of the `other` one."""
    own = [
        line
        for line in lines
        if line["sampling"] == "balanced" and line["target"] == "same" and line["method"] == line["like"]
    ]
    for dataset, images in dict.fromkeys((line["dataset"], line["images"]) for line in own):
        here = [line for line in own if (line["dataset"], line["images"]) == (dataset, images)]
        for crops in sorted({line[other] for line in here if line[other]}):
            mine = with_budget(here, other, crops)
            lengths_of = {
                m: {line[which] for line in mine if line["method"] == m} for m in {line["method"] for line in mine}
            }
            several = {m for m, lengths in lengths_of.items() if len(lengths) > 1}
            if not several - {RANDOM}:
                continue
            lengths = sorted(set.union(*(lengths_of[m] for m in several)))
            methods = {m: name_of(m) for m in order(several)}

            def get(n, m, mine=mine):
                return values(mine, "top1", method=m, **{which: n})

            some = f"{images:,} images of " if images else ""
            page.say(f"## Length of {training}: {some}{dataset}, {crops:,} crops of {other_training}")
            page.say(
                table(
                    methods,
                    {n: f"{n:,} crops" for n in lengths},
                    lambda m, n, get=get: get(n, m),
                    "fine-tuned, top-1, %",
                )
            )
            none = values(mine, "top1", method=RANDOM) if which == "budget" else {}
            if none:
                page.say(f"Random initialisation: {cell(none)}.")
            level = spread(none.values())[0] if none else None
            draw = partial(
                lines_of,
                xs=lengths,
                series=methods,
                get=get,
                xlabel=f"crops of {training}",
                ylabel="top-1, %",
                level=level,
            )
            page.picture(f"{which}_{dataset}{f'_{images}' if images else ''}_{crops}", draw)


def _mixed(lines):
    """Sentences about rows whose cells were run with different settings."""
    seen, what = {}, ("dataset", "images", "sampling", "method", "budget", "target", "finetune_budget")
    for line in lines:
        settings = "-".join(
            line["settings"].split("-")[:2]
        )  # the third part is the rows, which each seed draws for itself
        seen.setdefault(tuple(line[k] for k in what), {}).setdefault(settings, []).append(line["seed"])
    return [
        f"- {'/'.join(map(str, key))}: not all seeds were run with the same settings: "
        + ", ".join(f"{s}: seeds {sorted(n)}" for s, n in kinds.items())
        for key, kinds in seen.items()
        if len(kinds) > 1
    ]
