"""`benchmark.py paper`: the whole schedule on tiny images, killed and called again; figures against closed forms."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY_VIT, ForkedScript, run_script, tiny_config

TINY = {
    "model.image_size": 32,
    "training.batch_size": 16,
    "training.compile": "false",
    "training.checkpoint_every": 1,
    "training.lr": 2e-3,
    "crops.groups": "[{count: 1, scale: [0.14, 1.0]}, {count: 1, scale: [0.05, 0.4]}]",
    "progressive.stages": "[{training.epochs: 800}, {model.image_size: 48, training.epochs: 400}]",
}


def paper(beton, folder, *args, scale=0.0025, **changes):
    """The arguments of a tiny schedule: epochs 2, 0.5 and 0.5 (so 1), and 2 and 1."""
    given = [f"--override={key}={value}" for key, value in (TINY | changes).items()]
    fixed = ["--model", "vit_tiny_patch16_224", "--options", json.dumps(TINY_VIT), "--epochs-scale", scale]
    return ["paper", "--train", beton, "--test", beton, "--out", folder, *fixed, *given, *args]


@pytest.fixture
def as_quick_as_can_be(monkeypatch, without_pictures):
    from idmm_fast.bench import paper_figures

    monkeypatch.setattr(paper_figures, "multiply_rate", lambda device, dtype: 1e12)


@pytest.mark.integration
def test_the_whole_schedule_is_trained_measured_and_not_done_again(tiny_beton, tmp_path, as_quick_as_can_be):
    runs, out = tmp_path / "runs", tmp_path / "out.json"
    first = run_script("benchmark.py", *paper(tiny_beton, runs, "--stages", "pretrain"))
    assert first.returncode == 0, first.stderr
    shown = run_script("benchmark.py", *paper(tiny_beton, runs, "--json", out))
    assert shown.returncode == 0, shown.stderr
    result = json.loads(out.read_text())
    assert result == json.loads((runs / "paper.json").read_text())
    parts = result["parts"]
    assert {name: (part["epochs"], part["image_size"]) for name, part in parts.items()} == {
        "pretrain": (2, 32),
        "finetune": (1, 32),
        "random": (1, 32),
        "ladder_1": (2, 32),
        "ladder_2": (1, 48),
    }
    assert [("top1" in part) for part in parts.values()] == [False, True, True, True, True]
    for name, folder in (("finetune", "finetune"), ("random", "random"), ("ladder_2", "ladder/stage_2")):
        own = json.loads((runs / folder / "result.json").read_text())
        assert own["top1"] == parts[name]["top1"]
        assert own["init"] == {"random": None, "finetune": str(runs / "pretrain")}.get(
            name, str(runs / "ladder/stage_1")
        )
    for part in parts.values():
        assert 0 < part["minutes"] < result["minutes"] < 5
        assert 0 <= part["data_wait"] <= 1
        assert part["share_of_mm"] == pytest.approx(part["images_per_s"] * part["gflop_per_image"] / 1e3)
        assert part["peak_memory_mb"] > 100
        assert part["compile_minutes"] == 0
    assert parts["pretrain"]["crops_per_s"] == pytest.approx(2 * parts["pretrain"]["images_per_s"])
    table = (tmp_path / "out.md").read_text()
    assert all(f"| {name}: " in table for name in parts)
    gain = parts["finetune"]["top1"] - parts["random"]["top1"]
    assert f"worth {gain:+.2f} points" in table

    again = run_script("benchmark.py", *paper(tiny_beton, runs, "--json", out))
    assert again.returncode == 0, again.stderr
    later = json.loads(out.read_text())
    assert later["parts"] == parts
    assert len(later["calls"]) == 3
    assert later["minutes"] > result["minutes"]
    assert again.stdout.count("done before") == 5

    other = run_script("benchmark.py", *paper(tiny_beton, runs, scale=0.005))
    assert other.returncode == 1
    assert "was begun with epochs_scale=0.0025, not 0.005" in other.stderr


def check_that_it_goes_on(arguments, runs):
    """Call a killed schedule again; what the killed call took is counted, and what its checkpoint holds is kept."""
    killed = json.loads((runs / "paper.json").read_text())
    assert not killed["calls"][0]["ended"]
    assert not killed["parts"]["pretrain"].get("done")
    shown = run_script("benchmark.py", *arguments)
    assert shown.returncode == 0, shown.stderr
    result = json.loads((runs / "paper.json").read_text())
    starts = [json.loads(line)["step"] for line in (runs / "pretrain" / "starts.jsonl").read_text().splitlines()]
    assert starts[0] == 0 < starts[1]
    first, second = result["parts"]["pretrain"]["calls"]
    assert first["killed"]
    assert 0 < first["seconds"] < 100
    assert "killed" not in second
    assert result["parts"]["pretrain"]["minutes"] == pytest.approx((first["seconds"] + second["seconds"]) / 60)
    assert "in 2 calls, 1 of them killed" in shown.stdout


@pytest.mark.integration
def test_a_stage_goes_on_from_its_checkpoint(tiny_beton, tmp_path, as_quick_as_can_be, monkeypatch):
    """A kill in this process: the training ends in its midst, and paper.json is what it was then."""
    from idmm_fast.train.pretraining import Pretraining

    def stop(self, step, progress):
        if progress >= 0.5:
            shutil.copy(runs / "paper.json", tmp_path)
            raise KeyboardInterrupt

    runs = tmp_path / "runs"
    arguments = paper(tiny_beton, runs, "--stages", "pretrain", scale=0.005)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "after_step", stop)
        assert run_script("benchmark.py", *arguments).returncode == 130
    shutil.copy(tmp_path / "paper.json", runs)
    check_that_it_goes_on(arguments, runs)


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_from_its_checkpoint(tiny_beton, tmp_path, as_quick_as_can_be):
    runs = tmp_path / "runs"
    arguments = paper(tiny_beton, runs, "--stages", "pretrain", scale=0.075, **{"training.checkpoint_every": 2})
    process = ForkedScript(ROOT / "benchmark.py", *arguments)
    try:
        until = time.monotonic() + 100
        while not list(runs.glob("pretrain/checkpoints/epoch_*.pt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    check_that_it_goes_on(arguments, runs)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--stages", "pretrain,tune"), "there is no stage 'tune'; there are pretrain, finetune, random, ladder"),
        (("--stages", "finetune"), "finetune starts from the pretraining, which is not done in"),
        (("--stages", "ladder,random"), "ladder starts from the pretraining, which is not done in"),
        (("--train", "/nowhere.beton"), "--train /nowhere.beton does not exist; make it with"),
        (("--epochs-scale", "0"), "--epochs-scale 0 is not above 0"),
        (("--override", "training.batchsize=3"), "Did you mean 'training.batch_size'?"),
        (("--options", '{"depht": 1}'), "depht"),
        (("--json", "out.md"), "the table is written as .md beside it"),
    ],
)
def test_arguments_that_cannot_be_used_are_a_sentence(args, says, tiny_beton, tmp_path):
    shown = run_script("benchmark.py", *paper(tiny_beton, tmp_path / "runs", *args))
    assert shown.returncode == 1
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_the_recipes_are_the_papers_at_full_length(tiny_beton, tmp_path):
    import argparse

    from idmm_fast.bench.paper import Recipes

    args = argparse.Namespace(
        out=tmp_path, epochs_scale=1.0, model="deit_tiny_patch16_224", options={}, override=[], train=tiny_beton
    )
    args.test = tiny_beton
    recipes = Recipes(args)

    def schedule(cfg):
        return cfg.model.image_size, cfg.training.epochs, cfg.training.batch_size, cfg.training.warmup_epochs

    (pretrain,), (tuned,) = recipes.parts("pretrain"), recipes.parts("random")
    assert schedule(pretrain.cfg) == (112, 800, 256, 2)
    assert schedule(tuned.cfg) == (224, 200, 256, 2)
    assert tuned.cfg.model.init is None
    ladder = recipes.parts("ladder")[-1].cfg
    assert ladder.model.init == str(tmp_path / "pretrain")
    assert [(s["training.epochs"], s.get("model.image_size", 224)) for s in ladder.progressive.stages] == [
        (800, 224),
        (100, 448),
    ]
    args.epochs_scale = 0.02
    (short,) = Recipes(args).parts("pretrain")
    assert schedule(short.cfg) == (112, 16, 256, 1.6)


def test_flop_are_those_of_the_products_by_hand(tiny_beton, tmp_path):
    from idmm_fast.bench.paper_figures import flop_per_image
    from idmm_fast.train.pretraining import Pretraining

    task = Pretraining(tiny_config(tiny_beton, tmp_path))
    d, depth, tokens, patch, instances, crops = 32, 2, 17, 8, 64, 6
    layer = 12 * d * d * tokens + 2 * tokens * tokens * d  # multiplications of a block
    patches = (tokens - 1) * 3 * patch * patch * d
    forward = 2 * (depth * layer + patches + d * instances)
    # Backward has two products for each of the forward pass, but the gradient of the pixels is not wanted.
    assert flop_per_image(task) == pytest.approx(crops * (3 * forward - 2 * patches), rel=1e-6)


def test_rates_follow_the_clock_of_the_training_and_leave_out_first_epochs(tmp_path):
    """A log made of steps of known length, with windows of a second as the trainer has, resumed once."""
    from idmm_fast.bench.paper_figures import training_rates

    images, batch, epochs, resumed = 40, 16, 60, 30
    lines, waits, lengths = [], [], []
    rng = np.random.default_rng(0)
    count = since = waited = 0.0
    shown = None
    for step in range(3 * epochs):
        if step in (0, 3 * resumed):
            count = since = waited = 0.0
            shown = None
        size = (16, 16, 8)[step % 3]
        length = 5.0 if step in (0, 3 * resumed) else rng.uniform(0.1, 0.5)
        count, since, waited = count + size, since + length, waited + 0.2 * length
        if since >= 1 or shown is None:
            shown = {"images_per_s": count / since, "data_wait": waited / since}
            count = since = waited = 0.0
        lines.append({"step": step, "epoch": step // 3, **shown})
        lengths.append(length)
        waits.append(0.2 * length)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "starts.jsonl").write_text('{"step": 0}\n' + json.dumps({"step": 3 * resumed}) + "\n")
    found = training_rates(tmp_path, images, batch)
    later = [k for k in range(3 * epochs) if k // 3 not in (0, resumed)]
    seconds = sum(lengths[k] for k in later)
    assert found["images_per_s"] == pytest.approx(len(later) / 3 * images / seconds, rel=0.02)
    assert found["data_wait"] == pytest.approx(0.2)
    assert found["first_epochs_s"] == pytest.approx(10, abs=1.5)


def test_a_card_that_is_not_in_the_table_has_no_data_sheet():
    from idmm_fast.bench.paper_figures import datasheet_rate

    assert datasheet_rate("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989
    assert datasheet_rate("NVIDIA H100 80GB HBM3", torch.float32) == 989 / 2
    assert datasheet_rate("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16) is None
