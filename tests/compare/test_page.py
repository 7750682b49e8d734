"""The results page: what it says of known numbers; the page and the commands of the documents."""

import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import ROOT, run_script
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from idmm_fast.commands.compare import parse
from idmm_fast.compare.figures import plot_bars, plot_lines
from idmm_fast.compare.page import write_page
from idmm_fast.compare.spec import RunSpec, SweepConfig, parse_budget
from idmm_fast.compare.stats import main_records
from idmm_fast.compare.tables import main_table

README = ROOT / "README.md"


def record(
    method,
    seed,
    top1,
    dataset="a",
    budget=800,
    target="same",
    images=0,
    sampling="balanced",
    tuning=100,
    base=None,
    settings="s",
    labels=2000,
    **more,
):
    return {
        "dataset": dataset,
        "images": images,
        "sampling": sampling,
        "method": method,
        "seed": seed,
        "budget": 0 if method == "random" else budget,
        "target": target,
        "finetune_budget": tuning,
        "base": base or method,
        "settings": settings,
        "crops": 0 if method == "random" else 790,
        "epochs": 3,
        "pretrain_seconds": 0.0 if method == "random" else 79.0,
        "peak_mb": None if method == "random" else 512,
        "knn10": 1.0,
        "knn20": top1 / 2,
        "linear": top1 / 3,
        "top1": top1,
        "top5": 90.0,
        "labels": labels,
        "curve": [[1, top1 - 5], [2, top1]],
        "finetune_seconds": 60.0,
        "finetune_epochs": 2,
        "jobs": 2,
        "finished": 0,
        **more,
    }


def page_of(lines, folder):
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return write_page(folder).read_text()


def section(page, heading):
    assert f"## {heading}\n" in page, re.findall("## .*", page)
    return page.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_sections_do_not_mix_lengths_of_fine_tuning(tmp_path):
    """IDMM gets worse by the length here, so that a mixture would show."""
    lines = [
        record(m, 0, v, images=n, labels=n, tuning=tuning, budget=8000)
        for n in (50, 100)
        for tuning, off in ((100_000, 0), (5000, 7))
        for m, v in (("idmm", n / 10 - off + 20), ("random", n / 10))
    ]
    lines += [
        record("idmm", 0, 50.0, budget=8000, tuning=100_000),
        record("simclr", 0, 1.0, images=50, labels=50, budget=8000, tuning=100_000),
    ]
    lines += [
        record("idmm", 0, v, target="b", budget=8000, tuning=tuning) for v, tuning in ((60.0, 100_000), (44.0, 5000))
    ]
    lines += [
        record("idmm", 0, v, images=50, sampling=k, target="a", budget=8000, tuning=tuning)
        for k in ("balanced", "random")
        for v, tuning in ((71.0, 100_000), (72.0, 5000))
    ]
    page = page_of(lines, tmp_path)
    long, short = (section(page, f"Fewer images: a, 8,000 crops in all, then {n} in all") for n in ("100,000", "5,000"))
    assert "| IDMM | **25.0** | **30.0** | **50.0** |" in long
    assert "| SimCLR | 1.0 | - | - |" in long
    assert "| IDMM | **18.0** | **23.0** |" in short
    assert "SimCLR" not in short
    assert "| a, 8,000, IDMM | 60.0 |" in section(page, "Transfer, fine-tuned for 100,000 crops in all")
    assert "| a, 8,000, IDMM | 44.0 |" in section(page, "Transfer, fine-tuned for 5,000 crops in all")
    assert "| IDMM on 50 of a, 8,000 crops, then 5,000 | 72.0 | 72.0 |" in page
    assert "| IDMM on 50 of a, 8,000 crops, then 100,000 | 71.0 | 71.0 |" in page


def test_fewer_images_by_the_image_as_at_the_papers_size(tmp_path):
    """--budget 4800x --finetune-budget 200x: all images have a column too, and what is said of the crops is so."""
    lines = [
        record(m, 0, v + n / 100, images=n % 2000, labels=n, budget=4800 * n, tuning=200 * n)
        for n in (250, 500, 2000)
        for m, v in (("idmm", 30.0), ("random", 9.0))
    ]
    page = section(page_of(lines, tmp_path), "Fewer images: a, 4,800 crops of each image, then 200 of each image")
    assert "| IDMM | **32.5** | **35.0** | **50.0** |" in page
    assert "fine-tuning 200 of each image" in page


def test_the_number_of_images_is_that_of_the_pretraining_whatever_is_fine_tuned_on(tmp_path):
    """As with data.per_class, or where images have no label."""
    lines = [
        record("idmm", 0, v, images=n % 2000, labels=200, budget=8000, tuning=900, pretraining_images=n)
        for n, v in ((100, 10.0), (500, 20.0), (2000, 30.0))
    ]
    page = section(page_of(lines, tmp_path), "Fewer images: a, 8,000 crops in all, then 900 in all")
    assert "| fine-tuned, top-1, % | 100 | 500 | 2,000 |" in page
    assert "| IDMM | 10.0 | 20.0 | 30.0 |" in page


def test_variants_at_another_budget_have_a_section_of_their_own(tmp_path):
    lines = [
        record("idmm", 0, 30.0),
        record("idmm", 0, 25.0, budget=400),
        record("idmm_plain", 0, 28.0, base="idmm", budget=400),
    ]
    page = page_of(lines, tmp_path)
    assert "| IDMM | 25.0 | 12.5 | 8.3 |" in section(page, "Variants: a, 400 crops, then 100")
    assert "Variants: a, 800" not in page


def test_runs_of_equal_time_are_not_mixed_with_those_of_equal_crops(tmp_path):
    """A table for each time, variants and fewer images in it; the other sections are as without these runs."""
    counted = [record(m, s, v + s) for m, v in (("random", 20.0), ("idmm", 30.0)) for s in range(2)]
    alone = page_of(counted, tmp_path)
    machine = {"machine": "a processor, 1 core a pretraining"}
    timed = [
        record(m, s, v + s, budget=0, base=base, minutes=minutes, images=images, **machine)
        for m, base, v in (("idmm", "idmm", 40.0), ("idmm_plain", "idmm", 50.0))
        for minutes in (10.0, 60.0)
        for images in (0, 250)
        for s in range(2)
    ]
    page = page_of(counted + timed, tmp_path)
    ten = section(page, "Equal time: 10 minutes, then 100 crops")
    assert "| trained from scratch | 20.5 ± 0.7 | - |" in ten
    assert "| idmm plain | **50.5 ± 0.7** | **50.5 ± 0.7** |" in ten
    assert "| fine-tuned, top-1, % | a | a, 250 images |" in ten
    lead = "idmm plain: 10.0 ± 0.0 (IDMM)"
    assert f"| fine-tuned, top-1 | {lead} | {lead} |" in ten
    assert "| IDMM | 3; 790 | 3; 790 |" in ten
    assert "(a processor, 1 core a pretraining)" in ten
    assert "## Equal time: 60 minutes, then 100 crops\n" in page
    assert page[page.index("## Methods") :] == alone[alone.index("## Methods") :]
    assert main_records(counted + timed) == counted


def test_at_equal_time_several_variants_of_a_method_have_a_table_and_one_is_a_method(tmp_path):
    """The two arms of a method stand in the main table, in the order of the methods; parts of one in their own."""
    rows = {
        "random": ("random", 20.0),
        "moco_v3": ("moco_v3", 25.0),
        "simclr": ("simclr", 30.0),
        "simclr_muon": ("simclr", 34.0),
        "instance_muon": ("instance_muon", 40.0),
        "recipe_b": ("instance_muon", 41.0),
        "recipe_a": ("instance_muon", 38.0),
    }
    lines = [
        record(m, s, v + s * (m != "simclr_muon"), budget=0, base=base, minutes=3.0, machine="a processor")
        for m, (base, v) in rows.items()
        for s in range(3)
    ]
    lines[:3] = [record("random", s, 20.0 + s) for s in range(3)]
    page = section(page_of(lines, tmp_path), "Equal time: 3 minutes, then 100 crops")
    main = page[: page.index("### The best of each column")].splitlines()
    assert [line for line in main if line.startswith("| ")][:6] == [
        "| fine-tuned, top-1, % | a |",
        "| trained from scratch | 21.0 ± 1.0 |",
        "| recommended recipe | **41.0 ± 1.0** |",
        "| SimCLR | 31.0 ± 1.0 |",
        "| SimCLR, improved | 34.0 ± 0.0 |",
        "| MoCo v3 | 26.0 ± 1.0 |",
    ]
    assert "Improved: with the recipe's Muon, rate and colour jitter." in page
    assert "recommended recipe: 7.0 ± 1.0 (SimCLR, improved)" in page
    variants = page[page.index("### Variants of recommended recipe") : page.index("### What was seen")]
    assert "| recipe a | 39.0 ± 1.0 |\n| recipe b | **42.0 ± 1.0** |" in variants
    assert "| recipe a | " in page[page.index("### What was seen") :]


def test_minutes_that_were_timed_again_are_not_averaged_with_those_before(tmp_path):
    """Other crops for the same minutes: of two recipes the newer counts, as it does with a budget."""
    lines = [
        record(m, s, v + s, budget=budget, minutes=3.0, recipe=recipe, machine="a processor")
        for m, v, budget, recipe in (("idmm", 10.0, 1000, 1), ("idmm", 50.0, 1100, 2), ("simclr", 45.0, 1000, 2))
        for s in range(3)
    ]
    page = section(page_of(lines, tmp_path), "Equal time: 3 minutes, then 100 crops")
    assert "| IDMM | **51.0 ± 1.0** |" in page
    assert "IDMM: 5.0 ± 0.0 (SimCLR)" in page


def test_variants_alone_have_their_table(tmp_path):
    lines = [
        record(m, 0, v, budget=9, base="idmm", minutes=1.0, machine="a")
        for m, v in (("recipe_a", 20.0), ("recipe_b", 30.0))
    ]
    page = section(page_of(lines, tmp_path), "Equal time: 1 minutes, then 100 crops")
    assert "### The best of each column" not in page
    assert "| recipe a | 20.0 |\n| recipe b | **30.0** |" in page


def test_runs_that_no_section_is_about_are_on_the_page_too(tmp_path):
    """Each of them once, and none that another section shows."""
    shown = [record(m, s, v + s) for m, v in (("random", 20.0), ("idmm", 30.0)) for s in range(2)]
    assert "## Other runs" not in page_of(shown, tmp_path)
    others = {
        "IDMM on a, 10 minutes, then 100 crops of b": [
            record("idmm", s, 71.0 + 2 * s, budget=0, minutes=10.0, target="b") for s in range(2)
        ],
        "IDMM on 5 balanced of a, 800 crops, then 100 crops of b": [record("idmm", 0, 72.0, images=5, target="b")],
        "SimCLR on 5 random of a, 800 crops, then 100 crops": [
            record("simclr", 0, 73.0, images=5, sampling="random", recipe=2)
        ],
        "IDMM on a, 4,000 crops, then 7 crops": [record("idmm", 0, 74.0, budget=4000, tuning=7)],
        "trained from scratch on 5 random of a, 0 crops, then 100 crops": [
            record("random", 0, 75.0, images=5, sampling="random")
        ],
    }
    page = page_of([*shown, *(line for lines in others.values() for line in lines)], tmp_path)
    found = table(section(page, "Other runs").strip("\n"))
    assert list(found)[2:] == list(others)
    assert found["IDMM on a, 10 minutes, then 100 crops of b"] == ["72.0 ± 1.4 (1)", "36.0 ± 0.7 (1)", "24.0 ± 0.5 (1)"]
    assert found["SimCLR on 5 random of a, 800 crops, then 100 crops"] == ["73.0", "36.5", "24.3"]
    alone = page_of(others["IDMM on a, 10 minutes, then 100 crops of b"], tmp_path)
    assert re.findall("## .*", alone) == ["## Other runs"]


def test_costs_are_those_of_the_runs_whose_accuracy_is_shown(tmp_path):
    """Of several settings of a seed the newest: 60 s, then 600; one epoch, then three."""
    lines = [
        record("idmm", 0, top1, settings=f"{seconds}-b", pretrain_seconds=seconds, curve=[[1, top1]])
        for top1, seconds in ((10.0, 60.0), (20.0, 600.0))
    ]
    page = page_of(lines, tmp_path)
    assert "| IDMM | 20.0 |" in page
    assert "| IDMM | 790 | 10.0 | 1 | 1.0 | 512 |" in page
    assert "Other runs" not in page
    timed = [
        record("idmm", 0, 10.0 * epochs, budget=1000 * epochs, epochs=epochs, minutes=10.0, machine="m") | {"crops": n}
        for epochs, n in ((1, 1000), (3, 3000))
    ]
    page = page_of(timed, tmp_path)
    assert "| IDMM | 30.0 |" in page
    assert "| IDMM | 3; 3,000 |" in page


def test_the_chart_of_a_dataset_with_a_space_in_its_name_is_linked(tmp_path):
    lines = [record("idmm", 0, v, dataset="my data", budget=n) for v, n in ((20.0, 800), (30.0, 1600))]
    links = re.findall(r"!\[.*\]\((.*)\)", page_of(lines, tmp_path))
    assert "assets/report_budget_my%20data_100.png" in links
    for link in links:
        assert re.fullmatch(r"\S+", link)
        assert (tmp_path / unquote(link)).exists()


def test_recipes_are_not_mixed(tmp_path):
    """Of a row the newest; no mean and no difference of two."""
    lines = [record(m, s, v + s) for m, v in (("random", 20.0), ("idmm", 30.0), ("simclr", 90.0)) for s in range(3)]
    page = page_of(lines, tmp_path)
    assert "All runs are of one version of the training code: 1 (" in page
    assert "It is 2 now (" in page
    lines += [record(m, s, v + s, recipe=2) for m, v in (("random", 40.0), ("idmm", 60.0)) for s in range(2)]
    page = page_of(lines, tmp_path)
    assert "The runs are of several versions of the training code: 1 (" in page
    assert "| IDMM | 60.5 ± 0.7 |" in page  # not in bold beside what it can not be compared with
    assert "| SimCLR | 91.0 ± 1.0 (1) |" in page
    assert "| IDMM | **20.0 ± 0.0** |" in page
    assert "| SimCLR | - |" in page  # its gain would be over another fine-tuning
    assert "All runs are of one version of the training code: 2 (" in page_of(lines[9:], tmp_path)


def test_the_page_says_what_the_numbers_are(tmp_path):
    lines = [
        record(m, s, base + s) for m, base in (("random", 20.0), ("idmm", 30.0), ("simclr", 25.0)) for s in range(3)
    ]
    lines += [
        record(m, s, base + s, dataset="b", budget=400)
        for m, base in (("random", 50.0), ("idmm", 52.0), ("simclr", 60.0))
        for s in range(3)
    ]
    for n in (100, 50):
        lines += [
            record(m, s, base + n / 10 + s, images=n, labels=n)
            for m, base in (("random", 0.0), ("idmm", 5.0))
            for s in range(2)
        ]
    lines += [
        record(m, s, 40.0, dataset="d", budget=n)
        for m in ("random", "idmm")
        for n in (400, 800)
        for s in range(1 if m == "random" else 2)
    ]
    lines += [
        record("idmm", 0, 35.0, dataset="a", target="b"),
        record("idmm", 0, 36.0, dataset="b", target="a", budget=400),
    ]
    lines += [
        record("idmm", 0, 77.0, images=50, labels=50, budget=4),
        record("idmm", 0, 99.0, dataset="b", budget=1600),
    ]  # budgets of their own: not mixed in
    lines += [
        record("idmm", s, 11.0 + s, images=n, labels=n, budget=2 * n) for s in range(2) for n in (100, 1000)
    ]  # two crops of each image
    lines += [
        record("idmm", s, 40.0, images=100, sampling=k, target="a") for k in ("balanced", "random") for s in range(2)
    ]
    lines += [record("idmm_plain", s, 28.0, base="idmm") for s in range(3)]
    lines += [record(m, 0, v, tuning=400) for m, v in (("random", 33.0), ("idmm", 34.0))]
    lines += [record("simclr", s, 27.0 + s, budget=2400) for s in range(2)]
    lines += [
        record("simclr", 9, 99.0, dataset="c", settings="t"),
        record("simclr", 8, 99.0, dataset="c", settings="u"),
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines) + '{"cut sho')
    page = write_page(tmp_path, tmp_path / "new" / "page.md").read_text()
    fewer = [f"Fewer images: a, {what}, then 100 in all" for what in ("800 crops in all", "2 crops of each image")]
    others = (
        "Class-balanced or random",
        "Variants: a, 800 crops, then 100",
        "Settings",
        "Length of fine-tuning: a, 800 crops of pretraining",
    )
    for heading in ("Methods", *fewer, "Transfer, fine-tuned for 100 crops in all", *others):
        assert f"## {heading}\n" in page, heading
    assert "| IDMM | **31.0 ± 1.0** | 53.0 ± 1.0 | **40.0 ± 0.0** | - |" in page
    assert "| SimCLR | 26.0 ± 1.0 | **61.0 ± 1.0** | - |" in page
    assert "| IDMM | **10.0 ± 0.0** | 2.0 ± 0.0 | **0.0** |" in page  # gains, seed by seed
    assert "(a: 800 and 100; b: 400 and 100; d: 800 and 100; c: 800 and 100)" in page
    assert "| SimCLR | 790 | 1.3 | 10 | 1.0 | 512 |" in page
    assert "| IDMM | **10.5 ± 0.7** | **15.5 ± 0.7** | **31.0 ± 1.0** |" in page  # 50, 100, all 2,000
    few = section(page, fewer[1])
    assert "| IDMM | **11.5 ± 0.7** | **11.5 ± 0.7** |" in few  # 100, 1,000
    assert "| IDMM | 1.0 ± 0.0 | - |" in few
    assert "| a, 800, IDMM | 31.0 ± 1.0 | 35.0 |" in page
    assert "| b, 400, IDMM | **36.0** | **53.0 ± 1.0** |" in page
    assert "| SimCLR | 26.0 ± 1.0 | 27.5 ± 0.7 |" in page.split("Length of pretraining")[1]
    assert "Trained from scratch: 21.0 ± 1.0.\n" in section(page, "Length of pretraining: a, 100 crops of fine-tuning")
    assert "| IDMM | 77.0 | 10.5 ± 0.7 |" in section(
        page, "Length of pretraining: 50 images of a, 100 crops of fine-tuning"
    )
    assert "| idmm plain | 28.0 ± 0.0 |" in page
    assert "| random weights | 10.5 ± 0.5 |" in page
    assert "| trained from scratch | 21.0 ± 1.0 |" in page
    assert "c/0/balanced/simclr/800/same/100: not all seeds have the same settings: t: seeds [9], u: seeds [8]" in page
    assert main_table(main_records(lines)).splitlines()[0] == "| fine-tuned, top-1, % | a | b | d | c |"
    for picture in re.findall(r"\]\((.*?)\)", page):
        assert (tmp_path / "new" / picture).stat().st_size > 3000


def test_a_dataset_with_signs_of_a_formula_in_its_name_has_its_charts(tmp_path):
    lines = [record(m, 0, v, dataset=r"$\frac$") for m, v in (("random", 20.0), ("idmm", 30.0))]
    assert r"| fine-tuned, top-1, % | $\frac$ |" in page_of(lines, tmp_path)
    assert len(list((tmp_path / "assets").glob("*.png"))) == 2


def test_one_seed_has_no_error_bar():
    """Two have one, of their sample standard deviation."""
    numbers = {1: {0: 1.0}, 2: {0: 1.0, 1: 2.0}, 4: {}}
    bars, lines = Figure().subplots(1, 2)
    plot_bars(bars, {1: "A", 2: "B", 4: "C"}, {"s": "S"}, lambda group, _: numbers[group], "")
    plot_lines(lines, [1, 2, 4], {"s": "S"}, lambda x, _: numbers[x], "")
    for axis in (bars, lines):
        ((_, _, (drawn,)),) = (found for found in axis.containers if isinstance(found, ErrorbarContainer))
        (bar,) = (np.array(ends) for ends in drawn.get_segments() if np.isfinite(ends).all() and len(ends))
        assert np.ptp(bar[:, 1]) == pytest.approx(2 * 0.5**0.5)


def test_a_page_of_nothing_is_refused(tmp_path):
    shown = run_script("compare.py", "report", "--out", tmp_path)
    assert shown.returncode == 1
    assert "holds no finished run" in shown.stderr


def test_the_documents_are_made_of_the_results(tmp_path):
    made = write_page(ROOT / "results", tmp_path / "results.md").read_text()
    assert made == (ROOT / "docs" / "results.md").read_text()
    made = write_page(ROOT / "results" / "equal_time", tmp_path / "results-equal-time.md").read_text()
    assert made == (ROOT / "docs" / "results-equal-time.md").read_text()
    # The sections: of whole datasets and of fewer images, of the recipe's parts, of six times the time.
    leads, _, longer = (table(part)["fine-tuned, top-1"] for part in re.split(r"(?=\| lead over the second)", made)[1:])
    # The README has both arms of a method in one cell, and the columns of whole datasets.
    page, readme = (table(text[text.index("| fine-tuned, top-1, %") :]) for text in (made, README.read_text()))
    for name, cells in readme.items():
        name = {"SupCon": "SupCon (uses labels)"}.get(name, name)
        arms = zip(*(page[arm] for arm in (name, f"{name}, improved") if arm in page))
        assert cells == [" → ".join(cell) for cell in arms][: len(cells)]
    assert [len(cells) for cells in readme.values()] == [4, 0] + [4] * (len(readme) - 2)
    recipe, scratch = (page[name][0].strip("*") for name in ("recommended recipe", "trained from scratch"))
    said = README.read_text()
    assert f"**Accuracy**: {recipe} % on flowers90" in said
    assert f"{scratch} % from scratch" in said
    lead = re.compile(r"recommended recipe: (\S+ ± \S+) .*")
    others = [lead.fullmatch(leads[k])[1] for k in (0, 1, 3)]
    fewer = [lead.fullmatch(leads[k])[1] for k in (4, 5, 6)]
    assert f"The lead is {others[0]}, {others[1]} and {others[2]} on" in " ".join(said.split())
    assert f"250, 500 and 1,000 images of flowers90 it is {', '.join(fewer)}" in " ".join(said.split())
    flowers, cifar = (lead.fullmatch(cell)[1] for cell in longer)
    assert f"in six times the time {flowers} on flowers90, {cifar} on cifar10" in " ".join(said.split())
    assert len(readme) == 1 + sum(not name.endswith(", improved") for name in list(page)[1:])


def table(text):
    """{first cell: the others} of the table that a text begins with."""
    lines = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()]
    return {name: cells for name, *cells in lines}


PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {c for page in PAGES for c in re.findall(r"python compare\.py ([^`\n]+?)(?:\s+#.*)?(?:`|\n)", page.read_text())}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documents_are_understood(command):
    """Their options, configurations, methods and budgets."""
    args = parse(command.split())
    if hasattr(args, "report"):
        return
    config = SweepConfig(ROOT / args.config)
    for method in args.methods:
        for budget in (args.budget, *args.finetune_budget):
            config.pretrain_config(
                RunSpec("x", 0, "balanced", method, 0, parse_budget(budget, 2040), "same", 1), "x", 2040, "x"
            )


def test_there_are_commands_in_the_documents():
    assert len(COMMANDS) > 8
