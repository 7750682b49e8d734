"""Benchmarks: small runs of each, whose figures must hang together."""

import argparse
import functools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, ForkedScript, run_script
from PIL import Image

from idmm_fast.bench import photographs


def bench(*args):
    """The benchmark in a process of its own."""
    process = ForkedScript(ROOT / "benchmark.py", *args)
    said = process.communicate(timeout=250)
    return subprocess.CompletedProcess(args, process.returncode, said, said)


@pytest.mark.integration
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


def test_epochs_benchmark_reports_everything(jpg_beton, tmp_path):
    """Its 40 images an epoch are too few for figures that mean anything."""
    out, cores = tmp_path / "out.json", os.sched_getaffinity(0)
    shown = run_script(
        "benchmark.py", "loader", "--beton", jpg_beton, "--epochs", 3, "--limit", 43, "--repeats", 2, "--json", out
    )
    assert shown.returncode == 0, shown.stderr
    assert os.sched_getaffinity(0) == cores
    result = json.loads(out.read_text())
    assert (result["images"], result["batch"], result["epochs"]) == (40, 5, 3)
    rates = result["images_per_s"]
    steps = ["epochs, steps", "one epoch, steps", "cold, steps"]
    assert list(rates) == list(result["waited"]) == ["epochs", "one epoch", *steps]
    for a, b in (("epochs", "one epoch"), ("epochs, steps", "one epoch, steps"), ("epochs, steps", "cold, steps")):
        assert rates[a]["min"] / rates[b]["max"] <= result["ratios"][f"{a} / {b}"] <= rates[a]["max"] / rates[b]["min"]
        assert f"{a} / {b}" in shown.stdout
    assert rates["epochs, steps"]["max"] < 5 / (result["step_ms"] / 1000)
    assert all(0 < share < 1 for share in result["waited"].values())


def test_spread_benchmark_reports_everything(jpg_beton, tmp_path):
    out, cores = tmp_path / "out.json", os.sched_getaffinity(0)
    shown = run_script("benchmark.py", "loader", "--beton", jpg_beton, "--spread", 2, "--repeats", 2, "--json", out)
    assert shown.returncode == 0, shown.stderr
    assert os.sched_getaffinity(0) == cores
    result = json.loads(out.read_text())
    assert (result["images"], result["batch"], result["spread"]) == (40, 5, 2)
    rates = result["images_per_s"]
    for name in ("jpg", "raw", "kept"):
        a, b = rates[f"{name}, spread"], rates[name]
        assert a["min"] / b["max"] <= result["ratios"][f"{name}, spread / {name}"] <= a["max"] / b["min"]
        assert f"{name}, spread / {name}" in shown.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--spread", "2", "--limit", "7"), "--limit 7 is less than the 8 batches"),
        (("--epochs", "2", "--limit", "7"), "--limit 7 is less than the 8 batches"),
        (("--peers", "nobody"), "unknown baselines"),
        (("--beton", "/nowhere.beton"), "does not exist"),
        (("--images", "/nowhere"), "not a folder"),
        (("--workers", "4096"), "cores"),
    ],
)
def test_bad_arguments_are_a_sentence(args, says):
    shown = run_script("benchmark.py", "loader", *args)
    assert shown.returncode == 1
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("loader", "--workers", "0"), "--workers: a whole number, at least 1, not 0"),
        (("loader", "--epochs", "-1"), "--epochs: a whole number, at least 0, not -1"),
        (("end_to_end", "--steps", "0"), "--steps: a whole number, at least 1, not 0"),
        (("writer", "--count", "many"), "--count: a whole number, at least 10, not many"),
        (("loss", "--repeats", "0"), "--repeats: a whole number, at least 1, not 0"),
    ],
)
def test_counts_that_are_none_are_refused(args, says):
    shown = run_script("benchmark.py", *args)
    assert shown.returncode == 2
    assert says in shown.stderr


def test_images_of_a_test_split_alone_are_images_to_measure_with(tree, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "test").symlink_to(tree)
    args = argparse.Namespace(beton=None, images=tmp_path / "images", limit=7)
    jpg, raw = photographs.open_betons(args, tmp_path)
    assert len(jpg) == len(raw) == 7


@pytest.mark.slow
def test_writer_benchmark_reports_everything(tree, tmp_path):
    out = tmp_path / "out.json"
    shown = run_script("benchmark.py", "writer", "--images", tree, "--count", 60, "--repeats", 1, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert set(result["images_per_s"]) == {"ours, as they are", "ours, encoded", "ffcv", "ffcv, jpg", "ffcv, encoded"}
    assert all(r > 0 for r in result["ratios"].values())
    assert result["peak_mb"]["all"] > 0


@pytest.mark.integration
def test_writer_benchmark_without_what_takes_long(tree, tmp_path, monkeypatch):
    """Of FFCV's systems one, in a process of its own as always; ours in this process, which has imported all."""
    from idmm_fast.bench import writer

    run_apart = writer._run

    def run(system, paths, folder, workers, limit):
        if system.startswith("ffcv"):
            return run_apart(system, paths, folder, workers, limit)
        return writer._convert(system, paths, Path(folder) / "out.beton", workers, limit)

    monkeypatch.setattr(writer, "_run", run)
    monkeypatch.setattr(writer, "SYSTEMS", ("ours, as they are", "ours, encoded", "ffcv, jpg"))
    monkeypatch.setattr(writer, "RATIOS", (("ours, as they are", "ffcv, jpg"),))
    out = tmp_path / "out.json"
    shown = run_script("benchmark.py", "writer", "--images", tree, "--count", 10, "--repeats", 1, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert set(result["images_per_s"]) == set(writer.SYSTEMS)
    assert (result["images"], result["different"]) == (10, 40)
    assert all(found["median"] > 0 for found in result["images_per_s"].values())
    assert result["ratios"]["ours, as they are / ffcv, jpg"] > 0
    assert result["peak_mb"]["all"] > 0
    assert "ours, as they are / ffcv, jpg" in shown.stdout


@pytest.mark.integration
def test_cache_benchmark_reports_everything(jpg_beton, tmp_path):
    out = tmp_path / "out.json"
    shown = run_script("benchmark.py", "cache", "--beton", jpg_beton, "--limit", 24, "--repeats", 2, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert set(result["images_per_s"]) == {"jpg, first", "jpg, kept", "raw", "jpg"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["bytes"]["jpg"] < result["bytes"]["kept"] <= result["bytes"]["raw"]
    assert "jpg, kept / raw" in shown.stdout


def test_loss_benchmark_reports_everything(tmp_path):
    out = tmp_path / "out.json"
    shown = run_script(
        "benchmark.py", "loss", "--batch", 64, "--dim", 32, "--classes", 20000, "--repeats", 2, "--json", out
    )
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert result["fused"]["fused / products"] > 0
    assert result["index"]["targets / index"] > 0


@pytest.mark.integration
@pytest.mark.parametrize("classes", [1000, pytest.param(30000, marks=pytest.mark.slow)])
def test_training_with_many_instances_shows_its_memory(tmp_path, classes):
    """Small here; `python benchmark.py head` is the real one."""
    out = tmp_path / "out.json"
    start = bench if classes == 30000 else functools.partial(run_script, "benchmark.py")
    shown = start("head", "--classes", classes, "--batch", 8, "--steps", 3, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert result["steps"] == 3
    assert abs(result["losses"][0] / (2 * np.log(classes)) - 1) < 0.05
    assert result["peak_mb"] > 100


@pytest.mark.slow
def test_step_benchmark_reports_everything(tmp_path):
    out = tmp_path / "out.json"
    shown = bench(
        "step",
        "--model",
        "vit_tiny_patch16_224",
        "--options",
        '{"depth": 2}',
        "--size",
        32,
        "--batch",
        2,
        "--instances",
        50,
        "--steps",
        1,
        "--repeats",
        2,
        "--json",
        out,
    )
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    rows = [row for row in result["crops_per_s"] if row not in ("+ bf16", "+ fp16", "+ patches multiplied")]
    assert rows == ["published", "+ index loss", "+ one pass", "+ channels-last", "+ plain attention", "+ compile"]
    assert result["ratios"]["published"] == 1
    assert all(0 < found["share"] < 1.5 for found in result["crops_per_s"].values())
    # 2 blocks of d = 192 on 5 tokens, forward and backward: 3 x 2 FLOP for each of 12 d^2 weights and token; and the
    # patches, the head, attention
    tokens, d = 5, 192
    products = 2 * 12 * d * d * tokens + 4 * 768 * d + d * 50 + 2 * 2 * tokens * tokens * d
    assert abs(result["gflop_per_crop"] / (6 * products / 1e9) - 1) < 0.05


def test_every_system_of_the_step_benchmark_computes_the_same_loss():
    """What is timed against each other is the same work: one step from the same weights, dropping paths alike."""
    import torch

    from idmm_fast.bench.step_systems import StepSetting, make_batch, make_systems

    device = torch.device("cpu")
    batch = make_batch(3, 40, 32, device)
    found = {}
    setting = StepSetting("vit_tiny_patch16_224", 32, 3, 40)
    for what, system in make_systems(setting, device, None).items():
        if what != "+ compile":
            found[what] = system.module.eval()(*batch).item()
    assert len(found) == 5
    assert max(found.values()) - min(found.values()) < 1e-4 * found["published"]


@pytest.mark.slow
def test_end_to_end_benchmark_reports_everything(jpg_beton, tmp_path):
    out = tmp_path / "out.json"
    shown = bench(
        "end_to_end",
        "--beton",
        jpg_beton,
        "--model",
        "vit_tiny_patch16_224",
        "--options",
        '{"depth": 1}',
        "--size",
        32,
        "--batch",
        4,
        "--steps",
        2,
        "--repeats",
        2,
        "--json",
        out,
    )
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    rates = result["images_per_s"]
    assert set(rates) == {"real", "synthetic", "loading"}
    assert all(r > 0 for r in rates.values())
    assert result["lost"] < 1
    assert 0 <= result["waiting"] <= 1
    assert "lost to loading" in shown.stdout


@pytest.mark.slow
def test_gpu_benchmark_runs_through(jpg_beton, tmp_path):
    """Small, and on the CPU where there is no GPU; without --small it says that there is none."""
    import torch

    out = tmp_path / "out.json"
    shown = bench("gpu", "--small", "--models", "vit_tiny_patch16_224", "--beton", jpg_beton, "--json", out)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert set(result["train"]) == set(result["step"]) == {"vit_tiny_patch16_224"}
    assert set(result["end_to_end"]) == {"jpg", "raw", "device"}
    if not torch.cuda.is_available():
        assert "no CUDA device" in run_script("benchmark.py", "gpu").stderr


def test_gpu_benchmark_writes_after_each_part_and_projects_the_real_training(
    jpg_beton, tmp_path, monkeypatch, without_pictures
):
    """The parts that take long are stand-ins here; the last one fails, and what was found before is there."""
    from idmm_fast.bench import end_to_end, paper_figures, step

    def fail(*args):
        raise FloatingPointError("the end")

    monkeypatch.setattr(paper_figures, "multiply_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(step, "measure", lambda setting, *args: {"crops_per_s": {}, "model": setting.model})
    monkeypatch.setattr(end_to_end, "EndToEnd", fail)
    out = tmp_path / "out.json"
    models = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")
    shown = run_script(
        "benchmark.py", "gpu", "--small", "--models", ",".join(models), "--beton", jpg_beton, "--json", out
    )
    assert shown.stderr.endswith("error: the end\n")
    result = json.loads(out.read_text())
    assert tuple(result["step"]) == models
    assert result["end_to_end"] == {}
    (trained,) = result["train"].values()
    assert (trained["model"], trained["images"], trained["epochs"]) == (models[0], 16, 3)
    at_its_rate = 800 * 2040 / trained["images_per_s"] / 60
    assert at_its_rate <= trained["projected_minutes"] <= at_its_rate + trained["minutes"]


def test_attention_counts_as_the_products_that_it_is():
    """Fused on a CPU it is an operator of its own, which torch's counter does not know."""
    import torch

    from idmm_fast.bench.step import count_flop

    q, k, v = torch.randn(3, 1, 2, 8, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flop(lambda: attend(q, k, v)) == 2 * 2 * (2 * 8 * 8 * 16)
