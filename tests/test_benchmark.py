"""Benchmarks: small runs of each, whose figures must hang together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from PIL import Image

ROOT = Path(__file__).parent.parent


def bench(*args):
    return subprocess.run(
        [sys.executable, ROOT / "benchmark.py", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


@pytest.mark.parametrize(
    "peers",
    [
        "official,albumentations,dali",
        pytest.param("official,ffcv", marks=pytest.mark.slow),
    ],  # FFCV compiles for a minute
)
def test_loader_benchmark_reports_everything(jpg_beton, tmp_path, peers):
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    shown = bench(
        "loader",
        "--beton",
        jpg_beton,
        "--repeats",
        2,
        "--limit",
        24,
        "--peers",
        peers,
        "--json",
        out,
        "--plot",
        plot,
    )
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    rates = result["images_per_s"]
    assert {"ours", "ours, raw", "decode", *peers.split(",")} - set(result["absent"]) <= set(rates)
    assert ("ours, twice" in rates) == (len(os.sched_getaffinity(0)) > 1)
    for name in result["absent"]:
        assert f"{name} is not installed" in shown.stdout
    for r in rates.values():
        assert 0 < r["min"] <= r["median"] <= r["max"]
    ends = [rates["ours"][a] / rates["official"][b] for a, b in (("min", "max"), ("max", "min"))]
    assert ends[0] <= result["ratios"]["ours / official"] <= ends[1]
    assert result["ratios"]["ours / official"] > 2
    stages = result["microseconds_per_image"]["jpg"]
    assert set(stages) == {"read", "decode", "resize", "colour", "blur", "mix", "wait"}
    assert sum(stages.values()) == pytest.approx(1e6 / rates["ours"]["median"], rel=1e-6)
    assert all(t > 0 for t in result["microseconds_per_view"].values())
    assert {"processor", "cores", "versions", "threading"} <= set(result["machine"])
    assert np.asarray(Image.open(plot)).std() > 10


@pytest.mark.parametrize(("args", "says"), [
    (("--peers", "nobody"), "unknown peers"), (("--beton", "/nowhere.beton"), "does not exist"), (("--images", "/nowhere"), "not a folder"),
    (("--workers", "4096"), "cores"),
])  # fmt: skip
def test_bad_arguments_are_a_sentence(args, says):
    shown = call("benchmark.py", "loader", *args)
    assert shown.returncode == 1
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr


def test_writer_benchmark_reports_everything(tree, tmp_path):
    out = tmp_path / "out.json"
    shown = call("benchmark.py", "writer", "--images", tree, "--count", 60, "--repeats", 1, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert set(result["images_per_s"]) == {"ours, as they are", "ours, encoded", "ffcv", "ffcv, jpg", "ffcv, encoded"}
    assert all(r > 0 for r in result["ratios"].values())
    assert result["peak_mb"]["all"] > 0


def test_loss_benchmark_reports_everything(tmp_path):
    out = tmp_path / "out.json"
    shown = call("benchmark.py", "loss", "--batch", 64, "--dim", 32, "--classes", 20000, "--repeats", 2, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert result["fused"]["fused / products"] > 0
    assert result["index"]["targets / index"] > 0


def test_training_with_many_instances_shows_its_memory(tmp_path):
    """Small here; `python benchmark.py head` is the real one."""
    out = tmp_path / "out.json"
    shown = bench("head", "--classes", 30000, "--batch", 8, "--steps", 3, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert result["steps"] == 3
    assert abs(result["losses"][0] / (2 * np.log(30000)) - 1) < 0.05
    assert result["peak_mb"] > 100
