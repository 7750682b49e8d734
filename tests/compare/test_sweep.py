"""Sweeps as programs: killed, resumed, reported; what fails harms no other run."""

import fcntl
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT, TINY_VIT, run_script
from PIL import Image

from idmm_fast.beton import open_beton, write_beton
from idmm_fast.compare.rates import ROUNDS
from idmm_fast.compare.store import RECIPE, ResultStore
from idmm_fast.datasets import Split


def sweep_args(sweep_dir, *args):
    return [
        "--config",
        sweep_dir / "compare.yaml",
        "--data",
        sweep_dir / "data",
        "--out",
        sweep_dir / "out",
        "--budget",
        "1500",
        "--finetune-budget",
        "128",
        *args,
    ]


TWO_METHODS = ("--datasets", "tiny", "--methods", "random", "idmm", "--seeds", "0", "1", "--jobs", "2")
THREE_METHODS = ("--datasets", "tiny", "--methods", "random", "idmm", "simclr", "--seeds", "0", "1", "--jobs", "2")


def running_process(sweep_dir, *args):
    """The sweep as a process, once a run is done."""
    command = [sys.executable, ROOT / "compare.py", *sweep_args(sweep_dir, *args)]
    process = subprocess.Popen(
        list(map(str, command)), env=os.environ | {"MARK": str(sweep_dir)}, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (sweep_dir / "out" / "results.jsonl").exists():
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    return process


def alive(sweep_dir):
    """Processes that were started with this folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={sweep_dir}".encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


def check_records(records, methods):
    """What every record of a finished sweep of two seeds holds."""
    assert {(record["method"], record["seed"]) for record in records} == {(m, s) for m in methods for s in (0, 1)}
    for record in records:
        assert record["recipe"] == RECIPE
        assert all(0 <= record[k] <= 100 for k in ("knn10", "knn20", "linear", "top1", "top5"))
        crops = {"random": 0, "idmm": 6, "simclr": 2}[record["method"]]
        assert record["crops"] == record["epochs"] * 64 * crops
        assert record["crops"] == 0 or abs(record["crops"] / 1500 - 1) < 0.15
        assert record["finetune_epochs"] == 2
        assert record["method"] == "random" or (record["pretrain_seconds"] > 0 and record["peak_mb"] > 100)
    assert {record["evaluated_at"] for record in records} == {24}  # random weights too: the pixels of the pretraining
    assert len({record["parameters"] for record in records}) == 1


@pytest.mark.integration
@pytest.mark.parametrize(
    ("methods", "args"),
    [
        (("random", "idmm"), TWO_METHODS),
        pytest.param(("random", "idmm", "simclr"), THREE_METHODS, marks=pytest.mark.slow),
    ],
    ids=["two methods", "three methods"],
)
def test_a_killed_sweep_resumes_and_reports(sweep_dir, methods, args):
    process = running_process(sweep_dir, *args)
    process.kill()
    process.wait()
    before = ResultStore(sweep_dir / "out").records
    assert 0 < len(before) < 2 * len(methods)
    began = time.monotonic()
    while alive(sweep_dir):  # its children end by themselves
        time.sleep(0.1)
        assert time.monotonic() - began < 60
    shown = run_script("compare.py", *sweep_args(sweep_dir, *args))
    assert shown.returncode == 0, shown.stderr
    lines = ResultStore(sweep_dir / "out").records
    assert lines[: len(before)] == before  # not run again
    check_records(lines, methods)
    alone = run_script(
        "evaluate.py",
        "--data",
        sweep_dir / "data" / "tiny_train.beton",
        "--test",
        sweep_dir / "data" / "tiny_test.beton",
        "--training.amp=fp32",
        "--model.name=vit_tiny_patch16_224",
        "--model.image_size=24",
        f"--model.options={yaml.safe_dump(TINY_VIT, default_flow_style=True)}",
    )
    random = next(line for line in lines if line["method"] == "random" and line["seed"] == 0)
    assert alone.stdout.splitlines()[0].split() == [
        t for k in ("knn10", "knn20", "linear") for t in (k, f"{random[k]:.2f}", "%")
    ]
    assert not list((sweep_dir / "out").rglob("checkpoints"))  # tidied up
    assert len(list((sweep_dir / "out").rglob("backbone.safetensors"))) == 2 * (len(methods) - 1)
    text = (sweep_dir / "out" / "results.jsonl").read_text()
    assert run_script("compare.py", *sweep_args(sweep_dir, *args)).returncode == 0
    assert (sweep_dir / "out" / "results.jsonl").read_text() == text
    shown = run_script("compare.py", "report", "--out", sweep_dir / "out")
    assert shown.returncode == 0, shown.stderr
    page = (sweep_dir / "out" / "report.md").read_text()
    mean = np.mean([line["top1"] for line in lines if line["method"] == "idmm"])
    assert re.search(rf"\| IDMM \| \**{mean:.1f} ± ", page)
    for picture in re.findall(r"\]\((.*?)\)", page):
        assert np.asarray(Image.open(sweep_dir / "out" / picture)).std() > 10


@pytest.mark.slow
def test_a_signal_stops_a_sweep_with_checkpoints(sweep_dir):
    process = running_process(sweep_dir, *THREE_METHODS)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command resumes" in said
    assert not alive(sweep_dir)
    assert run_script("compare.py", *sweep_args(sweep_dir, *THREE_METHODS)).returncode == 0
    check_records(ResultStore(sweep_dir / "out").records, ("random", "idmm", "simclr"))
    assert len(list((sweep_dir / "out").rglob("backbone.safetensors"))) == 4


@pytest.mark.integration
@pytest.mark.parametrize(
    "length",
    [
        ("--budget", "864", "--finetune-budget", "24", "--jobs", "2"),
        pytest.param(("--budget", "1500", "--finetune-budget", "128", "--jobs", "1"), marks=pytest.mark.slow),
    ],
    ids=["six epochs", "ten epochs"],
)
def test_fewer_images_other_targets_and_those_that_fail(sweep_dir, tiny_beton, length):
    """Of a pretraining that fails all runs are named, of another the one that fails, and it harms none after it.

    Subsets are balanced; a transfer is evaluated on its target.
    """
    for path in (tiny_beton, tiny_beton.with_suffix(".json")):
        (sweep_dir / "data" / f"odd_train{path.suffix}").symlink_to(path)
    others = Split(list(np.zeros((4, 16, 16, 3), np.uint8)), [0, 0, 1, 1], ["no", "such"])
    write_beton(sweep_dir / "data" / "odd_test.beton", others, dataset="test", name="test", mode="raw", quiet=True)
    args = ("--datasets", "tiny", "--methods", "wild", "idmm_plain", "--images", "24")
    args += ("--targets", "same", "odd", "tiny")
    shown = run_script("compare.py", *sweep_args(sweep_dir, *args, *length))
    assert shown.returncode == 1
    failed = [line for line in shown.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 4
    for target in ("", " -> odd", " -> tiny"):
        assert f"failed: tiny 24 balanced{target}, wild, seed 0, " in shown.stderr
    assert sum("FloatingPointError" in line for line in failed) == 3
    (odd,) = (line for line in failed if "idmm_plain" in line)
    assert odd.startswith("failed: tiny 24 balanced -> odd, idmm_plain, seed 0, ")
    assert "have other classes" in odd
    lines = {line["target"]: line for line in ResultStore(sweep_dir / "out").records}
    assert set(lines) == {"same", "tiny"}
    assert lines["same"]["labels"] == 24
    assert lines["tiny"]["labels"] == 64
    assert lines["same"]["base"] == "idmm"
    assert lines["same"]["crops"] == lines["tiny"]["crops"] == lines["same"]["epochs"] * 24 * 6
    (made,) = (sweep_dir / "out").rglob("*.beton")
    assert np.bincount(open_beton(made).label).tolist() == [6, 6, 6, 6]


@pytest.mark.integration
def test_a_sweep_of_equal_time(sweep_dir):
    """Each sees the crops of 0.6 seconds at its rate, on which machine is told; the same command does nothing."""
    args = ["--config", sweep_dir / "compare.yaml", "--data", sweep_dir / "data", "--out", sweep_dir / "out"]
    args += ["--datasets", "tiny", "--methods", "random", "idmm", "idmm_plain", "--jobs", "2"]
    args += ["--minutes", "0.01", "--finetune-budget", "128"]
    assert run_script("compare.py", *args).returncode == 0
    lines = {line["method"]: line for line in ResultStore(sweep_dir / "out").records}
    assert lines["random"]["minutes"] == lines["random"]["crops"] == 0
    rates = {rate["method"]: rate for rate in json.loads((sweep_dir / "out" / "rates.json").read_text())}
    assert rates.keys() == {"idmm", "idmm_plain"}
    for name, rate in rates.items():
        line = lines[name]
        assert rate["crops_per_s"] == statistics.median(rate["rounds"])
        assert len(rate["rounds"]) == ROUNDS
        assert (line["minutes"], line["budget"]) == (0.01, round(0.6 * rate["crops_per_s"]))
        assert line["crops"] == line["epochs"] * 64 * 6 == pytest.approx(line["budget"], abs=64 * 3)
        assert (line["jobs"], line["timed_on"]) == (rate["jobs"], rate["machine"]) == (2, line["machine"])
        assert re.search(r", \d+ cores? a pretraining$", line["machine"])
    before = [(sweep_dir / "out" / name).read_text() for name in ("results.jsonl", "rates.json")]
    assert run_script("compare.py", *args).returncode == 0
    assert [(sweep_dir / "out" / name).read_text() for name in ("results.jsonl", "rates.json")] == before
    assert not list((sweep_dir / "out" / "runs").glob("timing_*"))
    assert run_script("compare.py", "report", "--out", sweep_dir / "out").returncode == 0
    page = (sweep_dir / "out" / "report.md").read_text()
    assert "## Equal time: 0.01 minutes, then 128 crops\n" in page
    assert f"({lines['idmm']['machine']})" in page
    assert f"| idmm plain | {lines['idmm_plain']['epochs']:,}; {lines['idmm_plain']['crops']:,} |" in page
    assert "## Methods" not in page


def test_a_sweep_has_a_time_or_a_budget(sweep_dir):
    shown = run_script("compare.py", *sweep_args(sweep_dir, *TWO_METHODS, "--minutes", "1"))
    assert shown.returncode == 2
    assert "--minutes: not allowed with argument --budget" in shown.stderr
    shown = run_script("compare.py", *sweep_args(sweep_dir, *TWO_METHODS)[:6], *TWO_METHODS, "--minutes", "-1")
    assert "a number of minutes above 0, not -1" in shown.stderr
    shown = run_script("compare.py", *sweep_args(sweep_dir, *TWO_METHODS)[:6], *TWO_METHODS, "--minutes", "abc")
    assert "a number of minutes above 0, not abc" in shown.stderr


def test_all_methods_that_come_along_are_in_the_help():
    shown = run_script("compare.py", "--help")
    methods = " ".join(shown.stdout.split()).split("--methods NAME [NAME ...] ")[-1].split(" or a variant")[0]
    named = {word.strip(",") for word in methods.split()}
    assert {file.stem for file in (ROOT / "rn_configs" / "methods").glob("*.yaml")} | {"random"} <= named


@pytest.mark.integration
def test_a_method_that_fails_while_it_is_timed_is_named(sweep_dir):
    """Once; and no results that are not there."""
    tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
    tree["methods"]["bad"] = {"base": "simclr", "method.options": {"no_such": 1}}
    (sweep_dir / "compare.yaml").write_text(yaml.safe_dump(tree))
    args = ["--datasets", "tiny", "--methods", "bad", "--minutes", "0.01"]
    shown = run_script("compare.py", *sweep_args(sweep_dir)[:6], *args)
    assert shown.returncode == 1
    failed = [line for line in shown.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith("failed: timing bad on tiny: ValueError: method.options: simclr has no 'no_such'")
    (log,) = re.findall(r"; see (.*)$", failed[0])
    assert Path(log).name == "tiny_0_balanced_bad_0_timing.log"
    assert "no_such" in Path(log).read_text()
    assert "results.jsonl" not in shown.stdout


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_there_is_at_least_one_pretraining_at_a_time(sweep_dir, jobs):
    shown = run_script("compare.py", *sweep_args(sweep_dir, *TWO_METHODS, "--jobs", jobs))
    assert shown.returncode == 2
    assert f"argument --jobs: at least 1 pretraining at a time, not {jobs}" in shown.stderr


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
def test_wrong_arguments_are_refused_before_anything_begins(sweep_dir, args, says):
    shown = run_script("compare.py", *sweep_args(sweep_dir, *args))
    assert shown.returncode == 1
    assert says in shown.stderr
    assert not (sweep_dir / "out" / "results.jsonl").exists()


def test_a_second_sweep_in_the_same_folder_is_refused(sweep_dir):
    (sweep_dir / "out").mkdir()
    with open(sweep_dir / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = run_script("compare.py", *sweep_args(sweep_dir, *THREE_METHODS))
    assert shown.returncode == 1
    assert f"the sweep in {sweep_dir / 'out'} is in use by" in shown.stderr
