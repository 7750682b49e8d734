"""Fine-tuning's classifier alone, and its end when the validation split gets no better."""

import json
import subprocess

import numpy as np
import pytest
import torch
from helpers import FINETUNE, read_losses, remove_later_checkpoints, tiny_config, torchrun_command
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn

from idmm_fast.beton.subset import write_subset
from idmm_fast.config import ConfigError
from idmm_fast.models import FrozenBackbone
from idmm_fast.train import checkpoint
from idmm_fast.train.finetuning import Finetuning, finetune
from idmm_fast.train.folds import run_folds
from idmm_fast.train.optim import make_optimizers

pytestmark = pytest.mark.usefixtures("without_pictures")


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- model.freeze


@pytest.mark.integration
def test_a_frozen_backbone_keeps_its_weights_to_the_last_bit_and_the_classifier_learns(
    tiny_beton, pretrained_run, tmp_path
):
    values = {"model__init": str(pretrained_run), "model__freeze": True, "model__drop_path": 0.5, "training__lr": 3e-2}
    values |= {"training__epochs": 30, "training__ema": 0.9}
    result = finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    before, after = (load_file(p) for p in (pretrained_run / "backbone.safetensors", tmp_path / "f/model.safetensors"))
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert set(after) - set(before) == {"head.weight", "head.bias"}
    assert result["top1"] > 50  # four colours; chance is 25
    state = checkpoint.newest(tmp_path / "f" / "checkpoints")[1]
    assert len(state["optimizer"]["state"]) == 2  # moments of the classifier alone


def test_a_frozen_backbone_gets_no_gradient_and_stays_in_evaluation_mode():
    """Batch normalisation keeps its statistics, stochastic depth drops nothing, and no graph leads into it."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), DropPath(0.9))
    backbone.eval()
    model = FrozenBackbone(backbone, nn.Linear(6, 3)).train()
    images = torch.randint(0, 256, (8, 3, 2, 2), dtype=torch.uint8)
    wanted, kept = backbone(model.normalize(images)), {k: v.clone() for k, v in backbone.state_dict().items()}
    assert not wanted.requires_grad
    logits = model(images)
    assert torch.equal(logits, model.head(wanted))
    logits.sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert model.head.weight.grad is not None
    assert all(torch.equal(value, kept[key]) for key, value in backbone.state_dict().items())
    model.eval()
    model.train()  # as after an evaluation
    assert (model.training, model.head.training, backbone.training, backbone[2].training) == (True, True, False, False)


def test_the_optimizer_of_a_frozen_backbone_has_the_classifier_alone(tiny_beton, pretrained_run, tmp_path):
    values = {"model__init": str(pretrained_run), "model__freeze": True}
    task = Finetuning(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    (adamw,) = make_optimizers(task.model, task.cfg.training)
    held = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert held == {id(p) for p in task.model.head.parameters()}
    assert f"from {pretrained_run} (frozen)" in task.description


# --- training.patience


@pytest.fixture
def accuracies(monkeypatch):
    """Called with numbers: the top-1 on data.val after each epoch."""

    def script(*top1):
        original = Finetuning.evaluate

        def evaluate(self, epoch, last):
            found = original(self, epoch, last)
            return found and {**found, "top1": float(top1[epoch])}

        monkeypatch.setattr(Finetuning, "evaluate", evaluate)

    return script


VALUES = {
    "training__epochs": 9,
    "training__evaluate_every": 1,
    "training__patience": 3,
    "training__checkpoint_every": 2,
    "training__keep_checkpoints": 100,
    "training__resume": "auto",
    "training__lr": 1e-2,
}


@pytest.mark.integration
def test_training_ends_when_the_validation_split_gets_no_better(tiny_beton, tmp_path, accuracies, capfd):
    """The best epoch is 1; 60 again is no better. The same after a stop at any time, and when called once more."""
    accuracies(50, 60, 55, 60, 59, 99, 99, 99, 99)
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **VALUES, data__val=str(tiny_beton))
    result = finetune(cfg)
    assert "stopped after epoch 5: 3 evaluations without a better top-1" in "".join(capfd.readouterr())
    assert (result["stopped_epoch"], result["best_epoch"], result["val_top1"]) == (4, 1, 60)
    assert json.loads((tmp_path / "f" / "result.json").read_text()) == result
    assert [line["top1"] for line in lines_of(tmp_path / "f") if "top1" in line] == [50, 60, 55, 60, 59]
    best = checkpoint.load(tmp_path / "f" / "checkpoints" / "best.pt")
    assert best["epoch"] == 1
    saved = load_file(tmp_path / "f" / "model.safetensors")
    assert torch.equal(saved["head.weight"], best["model"]["head.weight"])
    last = checkpoint.listing(tmp_path / "f" / "checkpoints")[-1]
    assert checkpoint.step_of(last) == 5 * 4  # though a checkpoint was not due

    losses = read_losses(tmp_path / "f")
    assert finetune(cfg) == result  # nothing is trained
    remove_later_checkpoints(tmp_path / "f", 4)
    assert checkpoint.step_of(checkpoint.listing(tmp_path / "f" / "checkpoints")[-1]) == 4 * 4
    assert finetune(cfg) == result  # of the three evaluations two came before the stop
    assert np.array_equal(read_losses(tmp_path / "f"), losses)


@pytest.mark.integration
def test_training_that_gets_better_goes_to_its_end(tiny_beton, tmp_path, accuracies):
    """It may end with as many evaluations that were no better: nothing was stopped."""
    accuracies(50, 49, 52, 50, 52)
    values = VALUES | {"training__epochs": 5, "training__patience": 2, "data__val": str(tiny_beton)}
    result = finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    assert "stopped_epoch" not in result
    assert result["best_epoch"] == 2


@pytest.mark.slow
def test_all_processes_stop_together(tiny_beton, tmp_path):
    """At a learning rate of 0 no evaluation is better than the first."""
    val = tmp_path / "val.beton"
    write_subset(tiny_beton, np.arange(9), val)
    keys = [f"--data.test={tiny_beton}", f"--data.val={val}", "--training.epochs=9", "--training.batch_size=36"]
    keys += ["--training.evaluate_every=1", "--training.patience=2", "--training.lr=0"]
    command = torchrun_command(2, tiny_beton, tmp_path / "f", *keys, script="finetune.py")
    shown = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert (shown.stdout + shown.stderr).count("stopped after epoch 3: 2 evaluations without a better top-1") == 1
    result = json.loads((tmp_path / "f" / "result.json").read_text())
    assert (result["stopped_epoch"], result["best_epoch"]) == (2, 0)
    assert len(read_losses(tmp_path / "f")) == 3 * 2


# --- combinations that make no sense


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model__freeze": True}, "model.freeze needs model.init"),
        ({"model__freeze": True, "model__init": "x", "training__optimizer": "muon"}, "training.optimizer=muon is for"),
        ({"model__freeze": True, "model__init": "x", "training__layer_decay": 0.7}, "training.layer_decay=0.7 is for"),
        ({"model__init_head": True}, "model.init_head needs model.init"),
        ({"training__patience": 3}, "training.patience needs data.val"),
        (
            {"training__patience": 3, "data__val": "x", "training__evaluate_every": 0},
            "set training.evaluate_every",
        ),
    ],
)
def test_keys_that_make_no_sense_together_are_refused(tiny_beton, tmp_path, values, says):
    with pytest.raises(ConfigError, match=says):
        finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    assert not (tmp_path / "f").exists()


def test_folds_have_no_validation_split_to_stop_by(tiny_beton, tmp_path):
    values = {"training__patience": 3, "data__val": str(tiny_beton)}
    with pytest.raises(ConfigError, match=r"training\.patience does not go with --folds"):
        run_folds(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values), 2)
