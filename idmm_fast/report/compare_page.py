"""What a comparison found: tables, bars and curves in one Markdown page, from results.jsonl."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..config import ConfigError
from .compare import RANDOM, Results

NAMES = {
    RANDOM: "random initialisation", "instance": "instance discrimination", "idmm": "IDMM", "simclr": "SimCLR", "supcon": "SupCon (uses labels)",
    "moco_v2": "MoCo v2", "moco_v3": "MoCo v3", "dino": "DINO",
}  # fmt: skip
MEASURES = {"top1": "fine-tuned, top-1", "knn20": "kNN, k = 20", "linear": "linear probe"}


def name_of(method):
    """The method as a reader calls it; a variant as its own name says."""
    return NAMES.get(method, method.replace("_", " "))


def order(methods):
    """The known ones as they stand in NAMES, then the others by name."""
    return sorted(set(methods), key=lambda m: (list(NAMES).index(m) if m in NAMES else len(NAMES), m))


def values(lines, measure, **wanted):
    """{seed: number} of `measure` among the lines that have these fields; of several settings the newest."""
    return {line["seed"]: line[measure] for line in lines if all(line[k] == v for k, v in wanted.items()) and line.get(measure) is not None}


def spread(numbers):
    """(mean, sample standard deviation; nan of one number)."""
    numbers = np.array(list(numbers), float)
    return numbers.mean(), numbers.std(ddof=1) if numbers.size > 1 else np.nan


def differences(found, base):
    """{seed: number} of two, seed by seed, where both have one."""
    return {seed: found[seed] - base[seed] for seed in found if seed in base}


def cell(numbers):
    """ "41.2 ± 0.3", without the spread where there is one number, "-" where there is none."""
    if not numbers:
        return "-"
    mean, deviation = spread(numbers.values())
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if np.isfinite(deviation) else "")


def table(rows, columns, get, first="", best=True):
    """Markdown: rows and columns are {key: title}, get(row, column) gives {seed: number}. best: the highest mean of each column in bold."""
    found = {(r, c): get(r, c) for r in rows for c in columns}
    top = {c: max((np.mean(list(found[r, c].values())) for r in rows if found[r, c]), default=None) for c in columns}
    lines = [f"| {first} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for r, title in rows.items():
        cells = []
        for c in columns:
            text = cell(found[r, c])
            bold = best and len(rows) > 1 and found[r, c] and np.mean(list(found[r, c].values())) == top[c]
            cells.append(f"**{text}**" if bold else text)
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
        file = self.path.with_name(f"{self.path.stem}_{name}.png")
        figure.savefig(file, dpi=90)
        self.say(f"![{name.replace('_', ' ')}]({file.name})")

    def write(self):
        self.path.write_text("\n\n".join(part.strip("\n") for part in self.text) + "\n")


def bars(axis, groups, series, get, ylabel):
    """Bars with error bars: a cluster for each of `groups`, a colour for each of `series`, points for the seeds."""
    width, colours = 0.8 / len(series), colormaps["tab10" if len(series) <= 10 else "tab20"].colors
    for k, (key, title) in enumerate(series.items()):
        found = [get(g, key) for g in groups]
        at = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
        stats = [spread(f.values()) if f else (np.nan, np.nan) for f in found]
        axis.bar(at, [m for m, _ in stats], width * 0.95, yerr=np.nan_to_num([s for _, s in stats]), capsize=2, label=title, color=colours[k % 20])
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
            axis.errorbar(x, mean, np.nan_to_num(deviation), marker="o", markersize=4, capsize=3, label=title, color=f"C{k % 10}")
    axis.set_xscale("log")
    axis.set_xticks(xs, [f"{x:,}" for x in xs])
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8)


def usual(numbers):
    """The one that most have, the largest of several; 0 of none."""
    numbers = [n for n in numbers if n]
    return max(sorted(set(numbers), reverse=True), key=numbers.count) if numbers else 0


def of_usual(lines, budget):
    """Those lines that have the `budget`, a key, that most of them have, or none."""
    most = usual(line[budget] for line in lines)
    return [line for line in lines if line[budget] in (0, most)]


def main_lines(lines):
    """What the main table is made of: all images of a dataset for both trainings, the methods themselves, and the budgets that most cells of a dataset have."""
    own = [line for line in lines if not line["images"] and line["target"] == "same" and line["method"] == line["like"]]
    main = []
    for dataset in dict.fromkeys(line["dataset"] for line in own):
        main += of_usual(of_usual([line for line in own if line["dataset"] == dataset], "budget"), "finetune_budget")
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
    rows = ["| on average over the cells | crops seen | pretraining, min | crops/s | fine-tuning, min | peak memory, MB |", "|---|---|---|---|---|---|"]
    for method in order(line["method"] for line in main):
        mine = [line for line in main if line["method"] == method]

        def mean(key, mine=mine):
            return np.mean([line[key] for line in mine])

        if method == RANDOM:
            rows.append(f"| {name_of(method)} | 0 | 0 | - | {mean('finetune_seconds') / 60:.1f} | - |")
            continue
        speed = sum(line["crops"] for line in mine) / sum(line["pretrain_seconds"] for line in mine)
        rows.append(f"| {name_of(method)} | {mean('crops'):,.0f} | {mean('pretrain_seconds') / 60:.1f} | {speed:,.0f} | "
                    f"{mean('finetune_seconds') / 60:.1f} | {mean('peak_mb'):,.0f} |")  # fmt: skip
    return "\n".join(rows) + "\n"


def write_page(out, path=None):
    """Write the page of the comparison in the folder `out`. Returns its path. Raises ConfigError where nothing is done yet."""
    out = Path(out)
    lines = Results(out).lines
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
    )
    if main:
        _main(page, lines, main)
    _fewer(page, lines)
    _transfer(page, lines)
    _sampling(page, lines)
    _variants(page, lines)
    _length(page, lines, "budget", "Length of pretraining", "crops of pretraining")
    _length(page, lines, "finetune_budget", "Length of fine-tuning", "crops of fine-tuning")
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


def _main(page, lines, main):
    datasets = {d: d for d in dict.fromkeys(line["dataset"] for line in main)}
    methods = {m: name_of(m) for m in order(line["method"] for line in main)}
    page.say("## Methods")
    for measure in MEASURES:
        page.say(main_table(lines, measure))
    page.picture("methods", lambda axis: bars(axis, datasets, methods, lambda d, m: values(main, "top1", dataset=d, method=m), "fine-tuned, top-1, %"))
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
                axis.plot(found[0][:, 0], np.mean([c[:, 1] for c in found], 0), marker=".", label=title, color=f"C{k % 10}")
        axis.set(xlabel="epoch of fine-tuning", ylabel="top-1, %", title=first)
        axis.legend(fontsize=8)

    page.picture("curves", curves)


def _fewer(page, lines):
    own = [line for line in lines if line["target"] == "same" and line["sampling"] == "balanced" and line["method"] == line["like"]]
    for dataset in dict.fromkeys(line["dataset"] for line in own if line["images"]):
        mine = [line | {"images": line["images"] or line["labels"]} for line in own if line["dataset"] == dataset]
        most = max(line["images"] for line in mine)
        few = [line for line in mine if line["images"] < most] or mine
        lengths = {line["finetune_budget"] for line in few}
        mine = [line for line in mine if line["finetune_budget"] in lengths]
        seen = []
        for unit, amount_of in (("each image", lambda line: round(line["budget"] / line["images"])), ("all", lambda line: line["budget"])):
            for amount in sorted({amount_of(line) for line in few if line["budget"]}):
                pretrained = [line for line in mine if line["budget"] and amount_of(line) == amount]
                alone = len({line["images"] for line in pretrained}) < 2
                if alone and (unit != "all" or all(line in seen for line in pretrained)):
                    continue
                seen += pretrained
                _sizes(page, dataset, pretrained + [line for line in mine if not line["budget"]], amount, unit)


def _sizes(page, dataset, lines, amount, unit):
    """Top-1 against the number of images, where pretrainings see `amount` crops of `unit`."""
    sizes = sorted({line["images"] for line in lines if line["budget"]})
    methods = {m: name_of(m) for m in order(line["method"] for line in lines if line["images"] in (sizes[:-1] or sizes))}

    def get(n, m):
        return values(lines, "top1", method=m, images=n)

    def gain(m, n):
        return differences(get(n, m), get(n, RANDOM))

    page.say(f"## Fewer images: {dataset}, {amount:,} crops {'in' if unit == 'all' else 'of'} {unit}", "Both trainings on so many images, class-balanced, "
             "drawn anew for each seed; as many crops of fine-tuning with few images as with many.")  # fmt: skip
    page.say(table(methods, {n: f"{n:,}" for n in sizes}, lambda m, n: get(n, m), "fine-tuned, top-1, %"))
    draw = partial(lines_of, xs=sizes, series=methods, get=get, xlabel="images", ylabel="top-1, %")
    page.picture(f"fewer_{Path(dataset).name}_{amount}{'' if unit == 'all' else 'x'}", draw)
    page.say(table({m: t for m, t in methods.items() if m != RANDOM}, {n: f"{n:,}" for n in sizes}, gain, "gain over random initialisation, points"))


def _transfer(page, lines):
    others = [line for line in lines if line["target"] not in ("same", line["dataset"]) and not line["images"]]
    if not others:
        return
    methods = order(line["method"] for line in others)
    sources = list(dict.fromkeys(line["dataset"] for line in others))
    tuned = {line["target"] for line in others}
    targets = {t: t for t in [*(s for s in sources if s in tuned), *sorted(tuned - set(sources))]}
    pretrained, lengths = {(line["dataset"], line["budget"]) for line in others}, {line["finetune_budget"] for line in others}
    page.say("## Transfer", "Rows: what was pretrained on; columns: what was fine-tuned on and judged.")
    rows = {(s, m): f"{s}, {name_of(m)}" for s in sources for m in methods} | {(None, RANDOM): name_of(RANDOM)}

    def get(row, target):
        source, method = row
        own = [line for line in lines if not line["images"] and line["finetune_budget"] in lengths]
        own = [line for line in own if method == RANDOM or (line["dataset"], line["budget"]) in pretrained]
        if source in (target, None):  # at home
            return values(own, "top1", dataset=target, method=method, target="same")
        return values(own, "top1", dataset=source, method=method, target=target)

    page.say(table(rows, targets, get, "fine-tuned, top-1, %"))
    means = []
    for m in methods:
        found = [get((s, m), t) for s in sources for t in targets if s != t]
        means.append(f"{name_of(m)} {np.mean([np.mean(list(f.values())) for f in found if f]):.1f}")
    page.say("Mean over all pairs of different datasets: " + "; ".join(means) + ".")


def _sampling(page, lines):
    drawn = [line for line in lines if line["images"] and line["target"] == line["dataset"]]
    kinds = {k: k for k in ("balanced", "random") if any(line["sampling"] == k for line in drawn)}
    if len(kinds) < 2:
        return
    page.say("## Class-balanced or random", "Pretrained on so many images, drawn with regard to their classes or without, then fine-tuned on all.")
    rows = {(line["dataset"], line["images"], line["method"]): f"{name_of(line['method'])} on {line['images']:,} of {line['dataset']}" for line in drawn}
    page.say(table(rows, kinds, lambda r, k: values(drawn, "top1", dataset=r[0], images=r[1], method=r[2], sampling=k), "fine-tuned, top-1, %", best=False))


def _variants(page, lines):
    whole = [line for line in lines if not line["images"] and line["target"] == "same"]
    for dataset in dict.fromkeys(line["dataset"] for line in whole if line["method"] != line["like"]):
        used = budgets(lines).get(dataset)
        mine = [line for line in whole if line["dataset"] == dataset and (line["budget"], line["finetune_budget"]) == used]
        bases = order(line["like"] for line in mine if line["method"] != line["like"])
        rows = {}
        for base in bases:
            rows |= {m: name_of(m) for m in (base, *order(line["method"] for line in mine if line["like"] == base != line["method"]))}

        def get(m, measure, mine=mine):
            return values(mine, measure, method=m)

        page.say(f"## Variants: {dataset}", table(rows, MEASURES, get))
        draw = partial(bars, groups=MEASURES, series=rows, get=lambda measure, m, get=get: get(m, measure), ylabel="%")
        page.picture(f"variants_{Path(dataset).name}", draw)


def _length(page, lines, which, title, unit):
    """Top-1 against a budget, for the methods that have several."""
    own = [line for line in lines if line["sampling"] == "balanced" and line["target"] == "same" and line["method"] == line["like"]]
    for dataset, images in dict.fromkeys((line["dataset"], line["images"]) for line in own):
        mine = [line for line in own if (line["dataset"], line["images"]) == (dataset, images)]
        mine = of_usual(mine, "finetune_budget" if which == "budget" else "budget")
        several = {m for m in {line["method"] for line in mine} if len({line[which] for line in mine if line["method"] == m}) > 1}
        if not several:
            continue
        lengths = sorted({line[which] for line in mine if line["method"] in several})
        methods = {m: name_of(m) for m in order(several)}

        def get(n, m, mine=mine):
            return values(mine, "top1", method=m, **{which: n})

        some = f"{images:,} images of " if images else ""
        page.say(f"## {title}: {some}{dataset}", table(methods, {n: f"{n:,} crops" for n in lengths}, lambda m, n, get=get: get(n, m), "fine-tuned, top-1, %"))
        none = values(mine, "top1", method=RANDOM) if which == "budget" else {}
        if none:
            page.say(f"Random initialisation: {cell(none)}.")
        level = spread(none.values())[0] if none else None
        draw = partial(lines_of, xs=lengths, series=methods, get=get, xlabel=unit, ylabel="top-1, %", level=level)
        page.picture(f"{which}_{Path(dataset).name}{f'_{images}' if images else ''}", draw)


def _mixed(lines):
    """Sentences about rows whose cells were run with different settings."""
    seen, what = {}, ("dataset", "images", "sampling", "method", "budget", "target", "finetune_budget")
    for line in lines:
        seen.setdefault(tuple(line[k] for k in what), {}).setdefault(line["settings"], []).append(line["seed"])
    return [
        f"- {'/'.join(map(str, key))}: not all seeds were run with the same settings: " + ", ".join(f"{s}: seeds {sorted(n)}" for s, n in kinds.items())
        for key, kinds in seen.items()
        if len(kinds) > 1
    ]
