"""Pretraining: the loss falls, the run folder is complete, the losses' forms and precisions agree."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import read_losses, remove_later_checkpoints, run_script, tiny_config, train_command
from PIL import Image

from idmm_fast.config import ConfigError
from idmm_fast.train import checkpoint
from idmm_fast.train.pretraining import pretrain

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.integration]


def test_pretraining_lowers_the_loss(pretrained_run):
    curve = read_losses(pretrained_run)
    assert len(curve) == 120
    assert curve[:4].mean() == pytest.approx(2 * math.log(64), rel=0.03)  # two groups, 64 classes, nothing known yet
    assert curve[-8:].mean() < 0.94 * 2 * math.log(64)  # 0.92 was measured; without learning it stays at 1


def test_mixing_begins_with_the_epoch_that_is_named(tiny_beton, tmp_path):
    """Until then a run is one without mixing, bit for bit."""

    def losses(alpha, first):
        values = {"cutmix__alpha": alpha, "cutmix__from_epoch": first, "training__epochs": 3}
        return read_losses(pretrain(tiny_config(tiny_beton, tmp_path / f"{alpha}_{first}", **values)))

    plain, late = losses(0.0, 0), losses(0.5, 2)
    begins = len(plain) * 2 // 3
    assert (late[:begins] == plain[:begins]).all()
    assert (late[begins:] != plain[begins:]).all()
    assert (losses(0.5, 3) == plain).all()


def test_run_folder_holds_every_documented_file(pretrained_run):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "crops.png",
        "curves.png",
        "backbone.safetensors",
        "checkpoints",
        "events",
    ):
        assert (pretrained_run / name).exists(), name
    lines = [json.loads(line) for line in (pretrained_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(120))
    assert all({"epoch", "step", "loss", "lr", "images_per_s", "data_wait"} <= set(line) for line in lines)
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    assert lines[-1]["epoch"] == 29
    assert yaml.safe_load((pretrained_run / "config.yaml").read_text())["training"]["epochs"] == 30
    assert list((pretrained_run / "events").glob("events.out.tfevents*"))
    assert np.asarray(Image.open(pretrained_run / "crops.png")).std() > 20
    assert len(checkpoint.listing(pretrained_run / "checkpoints")) == 2


def test_dry_run_stops_after_max_steps_and_writes_no_weights(tiny_beton, tmp_path):
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__max_steps=3))
    assert len(read_losses(folder)) == 3
    assert not (folder / "backbone.safetensors").exists()
    assert checkpoint.listing(folder / "checkpoints") == []


def test_a_dry_run_over_whole_epochs_leaves_its_folder_to_a_training(tiny_beton, tmp_path):
    """And one of fewer steps than a training has done changes nothing."""
    values = {"training__checkpoint_every": 1, "training__epochs": 3}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__max_steps=9, **values))
    assert len(read_losses(folder)) == 9
    assert not list((folder / "checkpoints").glob("*"))
    pretrain(tiny_config(tiny_beton, folder, **values))
    losses = read_losses(folder)
    assert len(losses) == 12
    remove_later_checkpoints(folder, 2)
    pretrain(tiny_config(tiny_beton, folder, training__resume="auto", training__max_steps=5, **values))
    assert np.array_equal(read_losses(folder), losses[:8])
    assert [path.name for path in checkpoint.listing(folder / "checkpoints")] == ["epoch_00001_step_00000008.pt"]


def test_fused_loss_gives_the_curve_of_the_dense_loss(tiny_beton, tmp_path, capfd):
    """The same curve to 1e-4, which of the two it is being said."""
    curves = {}
    for kind in ("dense", "fused"):
        curves[kind] = read_losses(
            pretrain(tiny_config(tiny_beton, tmp_path / kind, head__loss=kind, training__epochs=6))
        )
    assert np.abs(curves["fused"] / curves["dense"] - 1).max() < 1e-4
    automatic = pretrain(tiny_config(tiny_beton, tmp_path / "auto", head__max_dense_mb=0, training__epochs=1))
    assert np.abs(read_losses(automatic)[:1] / curves["dense"][:1] - 1).max() < 1e-4
    shown = "".join(capfd.readouterr())
    assert shown.count("dense loss (dense logits") == 1
    assert shown.count("fused loss (dense logits") == 2


def test_sampled_head_trains_and_resumes_bit_for_bit(tiny_beton, tmp_path, capfd):
    """Half of the images outside the batch take part, each counted twice: the loss starts where the full one does."""
    options = {"head__sample_rate": 0.5, "training__resume": "auto", "training__epochs": 6}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", **options))
    curve = read_losses(folder)
    assert "0.5 of the others" in "".join(capfd.readouterr())
    assert curve[0] == pytest.approx(2 * math.log(64), rel=0.05)  # each stands for two
    assert curve[-4:].mean() < curve[:4].mean()
    for path in checkpoint.listing(folder / "checkpoints")[1:]:
        path.unlink()
    pretrain(tiny_config(tiny_beton, tmp_path / "run", **options))
    assert np.array_equal(read_losses(folder), curve)
    with pytest.raises(ConfigError, match=r"head\.loss=dense does not go"):
        pretrain(tiny_config(tiny_beton, tmp_path / "other", head__loss="dense", head__sample_rate=0.5))


@pytest.mark.timeout(280)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_bf16_training_follows_eager_fp32(tiny_beton, tmp_path, monkeypatch, backend):
    """Within 2 % at every step: bf16 keeps 8 bits, so that each product is off by up to 0.4 %.

    aot_eager takes the same graphs, forward and backward, as inductor and runs them without compiling C++.
    """
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    eager = pretrain(tiny_config(tiny_beton, tmp_path / "eager", training__batch_size=24))
    fast = pretrain(
        tiny_config(
            tiny_beton, tmp_path / "fast", training__batch_size=24, training__compile=True, training__amp="bf16"
        )
    )
    assert np.abs(read_losses(fast) / read_losses(eager) - 1).max() < 0.02


def test_online_evaluation_equals_evaluate_and_leaves_the_curve_alone(tiny_beton, tmp_path):
    """Every second epoch and at the end; the numbers are those of evaluate.py, the curve is that of a run without."""
    changes = ["--model.drop_path=0.2", "--training.batch_size=16", "--training.epochs=3", "--training.resume=no"]
    base = [*train_command(tiny_beton, tmp_path / "run")[1:], *changes]
    shown = run_script(
        Path(base[0]).name, *base[1:], f"--data.test={tiny_beton}", "--online_eval.every=2", "--online_eval.linear=true"
    )
    assert shown.returncode == 0, shown.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "knn20" in line] == [1, 2]
    judged = run_script("evaluate.py", "--checkpoint", tmp_path / "run", "--logging.run_dir=null")
    assert judged.stdout.splitlines()[0] == "  ".join(f"{k} {lines[-1][k]:.2f} %" for k in ("knn10", "knn20", "linear"))
    assert run_script(Path(base[0]).name, *base[1:], f"--logging.run_dir={tmp_path / 'plain'}").returncode == 0
    assert np.array_equal(read_losses(tmp_path / "run"), read_losses(tmp_path / "plain"))
