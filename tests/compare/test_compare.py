"""The comparison: a small grid that is killed, goes on and reports; what a page says of known numbers."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT, TINY_VIT, run_script
from PIL import Image

from idmm_fast.beton import BetonError, open_beton, write_beton
from idmm_fast.beton.format import SUMS_MARK
from idmm_fast.beton.subset import sample_rows, write_subset
from idmm_fast.compare.page import main_table, write_page
from idmm_fast.compare.runner import RECIPE, Betons, Cell, Results, Runner, Setup, _counted, crops
from idmm_fast.config import ConfigError, build, keys, read
from idmm_fast.datasets import Split
from idmm_fast.loader import Augment, MultiCropLoader, Views
from idmm_fast.train import finetuning as finetune
from idmm_fast.train.pretraining import SCHEMA


@pytest.fixture
def place(tmp_path, tiny_beton):
    """A folder with a small configuration, the methods' files, and the betons tiny_train and tiny_test."""
    (tmp_path / "methods").symlink_to(ROOT / "rn_configs" / "methods")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"tiny_{split}.beton").symlink_to(tiny_beton)
    small = {"batch_size": 32, "lr": 1e-3, "compile": False, "amp": "fp32"}
    (tmp_path / "compare.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": "vit_tiny_patch16_224", "options": TINY_VIT, "drop_path": 0.0},
                "warmup": 0.1,
                "pretrain": {"model": {"image_size": 24}, "training": small},
                "finetune": {"model": {"image_size": 32}, "training": small},
                "methods": {
                    "simclr": {"method.options": {"hidden": 16, "dim": 8}},
                    "wild": {"like": "idmm", "training.lr": 1e30, "training.max_nonfinite_steps": 2},
                    "idmm_plain": {"like": "idmm", "cutmix.alpha": 0},
                },
            }
        )
    )
    return tmp_path


def grid(place, *args):
    return [
        "--config",
        place / "compare.yaml",
        "--data",
        place / "data",
        "--out",
        place / "out",
        "--budget",
        "1500",
        "--finetune-budget",
        "128",
        *args,
    ]


SMALL = ("--datasets", "tiny", "--methods", "random", "idmm", "simclr", "--seeds", "0", "1", "--jobs", "2")


def begun(place, *args):
    """The comparison as a process, once a cell is done."""
    command = [sys.executable, ROOT / "compare.py", *grid(place, *args)]
    process = subprocess.Popen(
        list(map(str, command)), env=os.environ | {"MARK": str(place)}, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (place / "out" / "results.jsonl").exists():
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    return process


def alive(place):
    """Processes that were started with this folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={place}".encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


def test_a_grid_is_killed_goes_on_and_reports(place):
    process = begun(place, *SMALL)
    process.kill()
    process.wait()
    before = Results(place / "out").lines
    assert 0 < len(before) < 6
    began = time.monotonic()
    while alive(place):  # its children end by themselves
        time.sleep(0.1)
        assert time.monotonic() - began < 60
    shown = run_script("compare.py", *grid(place, *SMALL))
    assert shown.returncode == 0, shown.stderr
    lines = Results(place / "out").lines
    assert lines[: len(before)] == before  # not run again
    assert {(line["method"], line["seed"]) for line in lines} == {
        (m, s) for m in ("random", "idmm", "simclr") for s in (0, 1)
    }
    for line in lines:
        assert line["recipe"] == RECIPE
        assert all(0 <= line[k] <= 100 for k in ("knn10", "knn20", "linear", "top1", "top5"))
        views = {"random": 0, "idmm": 6, "simclr": 2}[line["method"]]
        assert line["crops"] == line["epochs"] * 64 * views
        assert line["crops"] == 0 or abs(line["crops"] / 1500 - 1) < 0.15
        assert line["finetune_epochs"] == 2
        assert line["method"] == "random" or (line["pretrain_seconds"] > 0 and line["peak_mb"] > 100)
    assert {line["judged_at"] for line in lines} == {24}  # random initialisation too, at the pixels of the pretraining
    alone = run_script(
        "evaluate.py",
        "--data",
        place / "data" / "tiny_train.beton",
        "--test",
        place / "data" / "tiny_test.beton",
        "--training.amp=fp32",
        "--model.name=vit_tiny_patch16_224",
        "--model.image_size=24",
        f"--model.options={yaml.safe_dump(TINY_VIT, default_flow_style=True)}",
    )
    random = next(line for line in lines if line["method"] == "random" and line["seed"] == 0)
    assert alone.stdout.split() == [t for k in ("knn10", "knn20", "linear") for t in (k, f"{random[k]:.2f}", "%")]
    assert not list((place / "out").rglob("checkpoints"))  # tidied up
    assert len(list((place / "out").rglob("backbone.safetensors"))) == 4
    text = (place / "out" / "results.jsonl").read_text()
    assert run_script("compare.py", *grid(place, *SMALL)).returncode == 0
    assert (place / "out" / "results.jsonl").read_text() == text
    shown = run_script("compare.py", "report", "--out", place / "out")
    assert shown.returncode == 0, shown.stderr
    page = (place / "out" / "report.md").read_text()
    mean = np.mean([line["top1"] for line in lines if line["method"] == "idmm"])
    assert re.search(rf"\| IDMM \| \**{mean:.1f} ± ", page)
    for picture in re.findall(r"\]\((.*?)\)", page):
        assert np.asarray(Image.open(place / "out" / picture)).std() > 10


@pytest.mark.slow
def test_a_signal_stops_it_with_checkpoints(place):
    process = begun(place, *SMALL)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on" in said
    assert not alive(place)
    assert run_script("compare.py", *grid(place, *SMALL)).returncode == 0
    assert len(Results(place / "out").lines) == 6


def test_fewer_images_other_targets_and_one_that_fails(place):
    """The failing one is named and harms no other; subsets are balanced; a transfer is judged on its target."""
    args = ("--datasets", "tiny", "--methods", "wild", "idmm_plain", "--images", "24", "--targets", "same", "tiny")
    shown = run_script("compare.py", *grid(place, *args))
    assert shown.returncode == 1
    assert "tiny 24 balanced, wild, seed 0" in shown.stderr
    assert "FloatingPointError" in shown.stderr
    lines = {line["target"]: line for line in Results(place / "out").lines}
    assert lines["same"]["labels"] == 24
    assert lines["tiny"]["labels"] == 64
    assert lines["same"]["like"] == "idmm"
    assert lines["same"]["crops"] == lines["tiny"]["crops"] == lines["same"]["epochs"] * 24 * 6
    (made,) = (place / "out").rglob("*.beton")
    assert np.bincount(open_beton(made).label).tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--datasets", "nowhere", "--methods", "idmm"), "nowhere_train.beton does not exist"),
        (("--datasets", "tiny", "--methods", "idmn"), "there is no method 'idmn'; there are dino, idmm"),
        (
            ("--datasets", "tiny", "--methods", "idmm", "--images", "1000"),
            "1000 images were asked for, and there are 64",
        ),
        (("--datasets", "tiny", "--methods", "idmm", "--config", "/nowhere.yaml"), "/nowhere.yaml does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(place, args, says):
    shown = run_script("compare.py", *grid(place, *args))
    assert shown.returncode == 1
    assert says in shown.stderr
    assert not (place / "out" / "results.jsonl").exists()


def tiny(path, seed, labels=None):
    """A beton of eight small images of noise, of two classes unless `labels` says otherwise."""
    images = list(np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), np.uint8))
    split = Split(images, labels or [k % 2 for k in range(8)], ["a", "b"])
    return write_beton(path, split, dataset="test", name="train", mode="raw", quiet=True).path


def as_by_ffcv(path):
    """Without checksums, as FFCV's own writer leaves it."""
    data = bytearray(path.read_bytes())
    at = data.index(np.array([SUMS_MARK]).tobytes())
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    assert open_beton(path).table_checksum == 0


@pytest.mark.parametrize("writer", ["ours", "ffcv"])
def test_what_is_done_is_told_by_what_the_betons_hold(place, writer):
    """Not by their names: other pixels or other labels are other settings, and so is each of the three files."""
    cell = Cell("x", 0, "balanced", "idmm", 0, 1500, "y", 128)
    runner = Runner(Setup(place / "compare.yaml"), Betons(place / "data", place / "made"), place / "out", 1)
    files = [place / "data" / f"{name}.beton" for name in ("x_train", "y_train", "y_test")]

    def settings(*seeds, labels=None):
        for file, seed in zip(files, seeds):
            tiny(file, seed, labels)
            if writer == "ffcv":
                as_by_ffcv(file)
        return runner.settings(cell)

    first = settings(1, 2, 3)
    others = [settings(4, 2, 3), settings(1, 4, 3), settings(1, 2, 4), settings(1, 2, 3, labels=[0] * 7 + [1])]
    assert len({first, *others}) == 5
    assert settings(1, 2, 3) == first  # written again, the same


def test_a_subset_is_of_the_images_there_are(place):
    """Of two datasets with one name in two folders, and of one that was converted anew."""
    betons = Betons(place / "data", place / "made")

    def pixels(folder, seed=None):
        if seed is not None:
            (place / folder).mkdir(exist_ok=True)
            tiny(place / folder / "x_train.beton", seed)
        some = open_beton(betons.train(Cell(str(place / folder / "x"), 4, "balanced", "idmm", 0, 100, "same", 100)))
        whole = open_beton(place / folder / "x_train.beton")
        assert set(some.sums) <= set(whole.sums)
        return some.path

    first, second = pixels("A", 1), pixels("B", 2)
    assert pixels("A", 3) != first
    assert pixels("B") == second  # not made again


def test_a_transfer_within_another_folder_is_judged_there(place):
    (place / "far").mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        tiny(place / "far" / f"x_{split}.beton", seed)
    betons = Betons(place / "data", place / "made")
    cell = Cell("tiny", 0, "balanced", "idmm", 0, 1500, str(place / "far" / "x"), 128)
    assert betons.of(cell)[1:] == (place / "far" / "x_train.beton", place / "far" / "x_test.beton")
    assert Runner(Setup(place / "compare.yaml"), betons, place / "out", 1).settings(cell)


@pytest.mark.parametrize(
    ("schema", "free"),
    [
        (SCHEMA, {"online_eval.every", "online_eval.linear"}),
        (finetune.SCHEMA, {"model.init", "progressive.stages"}),
    ],
)
def test_every_key_counts_but_these(schema, free):
    """What changes no number, or but the rounding."""
    free |= {"data.train", "data.test", "data.num_workers", "logging.run_dir"} | {
        f"training.{k}"
        for k in (
            "seed",
            "resume",
            "device",
            "compile",
            "channels_last",
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
            "max_nonfinite_steps",
        )
    }
    cfg = build(
        schema, {"data.train": "x", "data.test": "y", "logging.run_dir": "z", "model.name": "m", "training.amp": "fp32"}
    )
    before = _counted(cfg)
    for key in keys(schema):
        section, name = key.split(".")
        kept = getattr(getattr(cfg, section), name)
        setattr(getattr(cfg, section), name, "bf16" if name == "amp" else "cpu" if name == "device" else "another")
        assert (_counted(cfg) == before) == (key in free), key
        setattr(getattr(cfg, section), name, kept)


def test_settings_tell_labels_and_the_recipe(place):
    def settings(recipe=RECIPE, **sections):
        tree = yaml.safe_load((place / "compare.yaml").read_text())
        for section, values in sections.items():
            tree[section] |= values
        (place / "other.yaml").write_text(yaml.safe_dump(tree))
        runner = Runner(Setup(place / "other.yaml"), Betons(place / "data", place / "made"), place / "out", 1)
        return runner.settings(Cell("tiny", 24, "balanced", "random", 0, 0, "same", 128), recipe)

    assert settings() == settings(finetune={"data.num_workers": 1})
    others = [
        settings(finetune={"data.per_class": 3}),
        settings(1),
        settings(pretrain={"model.image_size": 16}),
        settings(finetune={"training.amp": "bf16"}),
    ]
    assert len({settings(), *others}) == 5


def test_of_the_results_only_the_last_line_may_be_cut_short(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"cut sho')
    assert Results(tmp_path).lines == [{"a": 1}, {"b": 2}]
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n{"cut sho\n{"b": 2}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .*results\.jsonl is damaged"):
        Results(tmp_path)


def test_an_unknown_key_of_the_configuration_is_named(place):
    (place / "compare.yaml").write_text("pretrained: {}\n")
    with pytest.raises(ConfigError, match="no key 'pretrained'; there are model, pretrain"):
        Setup(place / "compare.yaml")
    (place / "compare.yaml").write_text("pretrain: {training: {learning_rate: 1}}\n")
    with pytest.raises(ConfigError, match=r"compare\.yaml: there is no key 'training.learning_rate'"):
        Setup(place / "compare.yaml").pretraining(
            Cell("tiny", 0, "balanced", "idmm", 0, 100, "same", 100), "x", 64, "x"
        )


def test_a_second_comparison_in_the_same_folder_is_refused(place):
    import fcntl

    (place / "out").mkdir()
    with open(place / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = run_script("compare.py", *grid(place, *SMALL))
    assert shown.returncode == 1
    assert "another comparison is running" in shown.stderr


def test_every_method_sees_the_budget(place):
    """At the sizes of the comparison that comes along."""
    setup = Setup(ROOT / "rn_configs" / "compare" / "small.yaml")
    for method in (
        "idmm",
        "instance",
        "simclr",
        "supcon",
        "moco_v2",
        "moco_v3",
        "dino",
        "idmm_no_smoothing",
        "idmm_no_cutmix",
        "idmm_two_crops",
    ):
        cfg = setup.pretraining(Cell("x", 0, "balanced", method, 3, 800_000, "same", 1), "x", 2040, "x")
        crops = cfg.training.epochs * 2040 * sum(g["count"] for g in cfg.crops.groups)
        assert abs(crops / 800_000 - 1) < 0.01
        assert cfg.training.seed == 3
        assert (cfg.training.batch_size, cfg.training.lr, cfg.model.image_size) == (128, 1e-3, 24)
        assert cfg.training.warmup_epochs == pytest.approx(0.05 * cfg.training.epochs)
        assert (cfg.cutmix.alpha > 0) == (method in ("idmm", "idmm_no_smoothing", "idmm_two_crops"))
    assert setup.pretraining(Cell("x", 0, "balanced", "random", 0, 0, "same", 1), "x", 2040, "x") is None


@pytest.mark.parametrize(
    "method",
    ["idmm", "instance", "simclr", "supcon", "moco_v2", "moco_v3", "dino", "idmm_no_cutmix", "idmm_at_224_pixels"],
)
def test_the_papers_comparison_has_the_methods_own_settings(method):
    setup, file = (
        Setup(ROOT / "rn_configs" / "compare" / "paper.yaml"),
        ROOT / "rn_configs" / "methods" / f"{method}.yaml",
    )
    cell = Cell("x", 0, "balanced", method, 0, crops("4800x", 2040), "same", crops("200x", 2040))
    cfg = setup.pretraining(cell, "x", 2040, "x")
    assert cfg.training.epochs == round(4800 / sum(g["count"] for g in cfg.crops.groups))
    if file.exists():
        for key, value in read(SCHEMA, file).items():
            section, name = key.split(".")
            found = getattr(getattr(cfg, section), name)
            assert found == value or name == "groups", key
    tuned = setup.finetuning(cell, "x", "x", 2040, None, "x")
    assert (tuned.training.epochs, tuned.model.image_size, tuned.training.warmup_epochs) == (200, 224, 2)


@pytest.mark.parametrize(
    ("text", "wanted"), [("400000", 400_000), ("4e5", 400_000), ("4800x", 4800 * 64), ("1.5x", 96)]
)
def test_budgets(text, wanted):
    assert crops(text, 64) == wanted


@pytest.mark.parametrize("text", ["many", "0", "x", "-3x"])
def test_budgets_that_are_none(text):
    with pytest.raises(ConfigError, match="a budget is a number of crops"):
        crops(text, 64)


def test_the_floor_on_crops_is_the_same_for_all(place):
    tree = yaml.safe_load((place / "compare.yaml").read_text())
    (place / "compare.yaml").write_text(yaml.safe_dump(tree | {"min_scale": 0.2}))
    cfg = Setup(place / "compare.yaml").pretraining(
        Cell("tiny", 0, "balanced", "idmm", 0, 1500, "same", 100), "x", 64, "x"
    )
    assert [g["scale"] for g in cfg.crops.groups] == [[0.2, 1.0], [0.2, 0.4]]


@pytest.mark.parametrize("kind", ["jpg", "raw"])
def test_a_subset_has_the_same_images(kind, jpg_beton, raw_beton, tmp_path):
    path = {"jpg": jpg_beton, "raw": raw_beton}[kind]
    rows = np.array([3, 5, 8, 30])
    written = write_subset(path, rows, tmp_path / "some.beton")
    some, whole = open_beton(tmp_path / "some.beton"), open_beton(path)
    assert written.count == 4
    assert some.classes == whole.classes
    places = np.array(written.places)
    assert np.array_equal(some.label, whole.label[rows[places]])
    pixels = [
        next(iter(MultiCropLoader(p, 4, 1, 0, 0.0, [Views(1, 48, resize=48)], Augment.none(), shuffle=False, rows=r)))[
            0
        ].images
        for p, r in ((path, rows[places]), (tmp_path / "some.beton", None))
    ]
    assert np.array_equal(*(x.numpy() for x in pixels))


def test_a_subset_of_an_altered_file_is_refused(tmp_path):
    path = tiny(tmp_path / "x_train.beton", 1)
    with open(path, "r+b") as file:
        file.seek(int(open_beton(path).ptr[5]) + 10)
        file.write(b"other")
    with pytest.raises(BetonError, match=r"row 5 of .* was altered"):
        write_subset(path, np.array([1, 5]), tmp_path / "some.beton")


def test_rows_are_balanced_or_random():
    labels = np.repeat(np.arange(4), [50, 30, 15, 5])
    assert np.bincount(labels[sample_rows(labels, 20, True, 0)]).tolist() == [5, 5, 5, 5]
    assert np.bincount(labels[sample_rows(labels, 47, True, 0)]).tolist() == [14, 14, 14, 5]
    counts = np.mean([np.bincount(labels[sample_rows(labels, 20, False, seed)], minlength=4) for seed in range(400)], 0)
    assert np.abs(counts - 20 * np.array([0.5, 0.3, 0.15, 0.05])).max() < 0.4  # about 4 standard errors
    assert not np.array_equal(sample_rows(labels, 20, True, 0), sample_rows(labels, 20, True, 1))
    with pytest.raises(ValueError, match="101 images"):
        sample_rows(labels, 101, True, 0)


def line(
    method,
    seed,
    top1,
    dataset="a",
    budget=800,
    target="same",
    images=0,
    sampling="balanced",
    tuning=100,
    like=None,
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
        "like": like or method,
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
        line(m, 0, v, images=n, labels=n, tuning=tuning, budget=8000)
        for n in (50, 100)
        for tuning, off in ((100_000, 0), (5000, 7))
        for m, v in (("idmm", n / 10 - off + 20), ("random", n / 10))
    ]
    lines += [
        line("idmm", 0, 50.0, budget=8000, tuning=100_000),
        line("simclr", 0, 1.0, images=50, labels=50, budget=8000, tuning=100_000),
    ]
    lines += [
        line("idmm", 0, v, target="b", budget=8000, tuning=tuning) for v, tuning in ((60.0, 100_000), (44.0, 5000))
    ]
    lines += [
        line("idmm", 0, v, images=50, sampling=k, target="a", budget=8000, tuning=tuning)
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
        line(m, 0, v + n / 100, images=n % 2000, labels=n, budget=4800 * n, tuning=200 * n)
        for n in (250, 500, 2000)
        for m, v in (("idmm", 30.0), ("random", 9.0))
    ]
    page = section(page_of(lines, tmp_path), "Fewer images: a, 4,800 crops of each image, then 200 of each image")
    assert "| IDMM | **32.5** | **35.0** | **50.0** |" in page
    assert "fine-tuning 200 of each image" in page


def test_variants_at_another_budget_have_a_section_of_their_own(tmp_path):
    lines = [
        line("idmm", 0, 30.0),
        line("idmm", 0, 25.0, budget=400),
        line("idmm_plain", 0, 28.0, like="idmm", budget=400),
    ]
    page = page_of(lines, tmp_path)
    assert "| IDMM | 25.0 | 12.5 | 8.3 |" in section(page, "Variants: a, 400 crops, then 100")
    assert "Variants: a, 800" not in page


def test_recipes_are_not_mixed(tmp_path):
    """Of a row the newest; no mean and no difference of two."""
    lines = [line(m, s, v + s) for m, v in (("random", 20.0), ("idmm", 30.0), ("simclr", 90.0)) for s in range(3)]
    page = page_of(lines, tmp_path)
    assert "All cells are of one recipe: 1, " in page
    assert "The recipe now is 2, " in page
    lines += [line(m, s, v + s, recipe=2) for m, v in (("random", 40.0), ("idmm", 60.0)) for s in range(2)]
    page = page_of(lines, tmp_path)
    assert "Cells are of several recipes: 1, " in page
    assert "| IDMM | 60.5 ± 0.7 |" in page  # not in bold beside what it can not be compared with
    assert "| SimCLR | 91.0 ± 1.0 (1) |" in page
    assert "| IDMM | **20.0 ± 0.0** |" in page
    assert "| SimCLR | - |" in page  # its gain would be over another fine-tuning
    assert "All cells are of one recipe: 2, " in page_of(lines[9:], tmp_path)


def test_the_page_says_what_the_numbers_are(tmp_path):
    lines = [line(m, s, base + s) for m, base in (("random", 20.0), ("idmm", 30.0), ("simclr", 25.0)) for s in range(3)]
    lines += [
        line(m, s, base + s, dataset="b", budget=400)
        for m, base in (("random", 50.0), ("idmm", 52.0), ("simclr", 60.0))
        for s in range(3)
    ]
    for n in (100, 50):
        lines += [
            line(m, s, base + n / 10 + s, images=n, labels=n)
            for m, base in (("random", 0.0), ("idmm", 5.0))
            for s in range(2)
        ]
    lines += [
        line(m, s, 40.0, dataset="d", budget=n)
        for m in ("random", "idmm")
        for n in (400, 800)
        for s in range(1 if m == "random" else 2)
    ]
    lines += [
        line("idmm", 0, 35.0, dataset="a", target="b"),
        line("idmm", 0, 36.0, dataset="b", target="a", budget=400),
    ]
    lines += [
        line("idmm", 0, 77.0, images=50, labels=50, budget=4),
        line("idmm", 0, 99.0, dataset="b", budget=1600),
    ]  # budgets of their own: not mixed in
    lines += [
        line("idmm", s, 11.0 + s, images=n, labels=n, budget=2 * n) for s in range(2) for n in (100, 1000)
    ]  # two crops of each image
    lines += [
        line("idmm", s, 40.0, images=100, sampling=k, target="a") for k in ("balanced", "random") for s in range(2)
    ]
    lines += [line("idmm_plain", s, 28.0, like="idmm") for s in range(3)]
    lines += [line(m, 0, v, tuning=400) for m, v in (("random", 33.0), ("idmm", 34.0))]
    lines += [line("simclr", s, 27.0 + s, budget=2400) for s in range(2)]
    lines += [line("simclr", 9, 99.0, dataset="c", settings="t"), line("simclr", 8, 99.0, dataset="c", settings="u")]
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
    assert "Random initialisation: 21.0 ± 1.0.\n" in section(page, "Length of pretraining: a, 100 crops of fine-tuning")
    assert "| IDMM | 77.0 | 10.5 ± 0.7 |" in section(
        page, "Length of pretraining: 50 images of a, 100 crops of fine-tuning"
    )
    assert "| idmm plain | 28.0 ± 0.0 |" in page
    assert (
        "c/0/balanced/simclr/800/same/100: not all seeds were run with the same settings: t: seeds [9], u: seeds [8]"
        in page
    )
    assert main_table(lines).splitlines()[0] == "| fine-tuned, top-1, % | a | b | d | c |"
    for picture in re.findall(r"\]\((.*?)\)", page):
        assert (tmp_path / "new" / picture).stat().st_size > 3000


def test_a_page_of_nothing_is_refused(tmp_path):
    shown = run_script("compare.py", "report", "--out", tmp_path)
    assert shown.returncode == 1
    assert "holds no finished cell" in shown.stderr


def test_the_documents_are_made_of_the_results(tmp_path):
    lines = Results(ROOT / "results").lines
    made = write_page(ROOT / "results", tmp_path / "comparison.md").read_text()
    assert made == (ROOT / "docs" / "comparison.md").read_text()
    assert main_table(lines) in (ROOT / "README.md").read_text()


def test_the_results_are_those_of_the_settings_that_come_along(tmp_path):
    """What stands in results.jsonl was run as rn_configs/compare/small.yaml says: epochs and crops are those that it makes."""
    setup = Setup(ROOT / "rn_configs" / "compare" / "small.yaml")
    for entry in Results(ROOT / "results").lines:
        cell = Cell(**{k: entry[k] for k in Cell.__dataclass_fields__})
        cfg = setup.pretraining(cell, "x", cell.images or entry["labels"], "x") if cell.target == "same" else None
        assert cfg is None or cfg.training.epochs == entry["epochs"]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {c for page in PAGES for c in re.findall(r"python compare\.py ([^`\n]+?)(?:\s+#.*)?(?:`|\n)", page.read_text())}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documents_are_understood(command):
    """Their options, configurations, methods and budgets."""
    spec = importlib.util.spec_from_file_location("compare", ROOT / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = module.parse(command.split())
    if hasattr(args, "report"):
        return
    setup = Setup(ROOT / args.config)
    for method in args.methods:
        for budget in (args.budget, *args.finetune_budget):
            setup.pretraining(Cell("x", 0, "balanced", method, 0, crops(budget, 2040), "same", 1), "x", 2040, "x")


def test_there_are_commands_in_the_documents():
    assert len(COMMANDS) > 8
