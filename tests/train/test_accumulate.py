"""Several batches a step: the weights and the curve of one batch as large as all of them."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import FINETUNE, read_losses, tiny_config, torchrun_command
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from idmm_fast.config import ConfigError
from idmm_fast.methods import IDMM
from idmm_fast.runtime import distributed
from idmm_fast.runtime.device import Runtime, without_exchange
from idmm_fast.train import batch_size, checkpoint, pretraining, task
from idmm_fast.train.batch_size import oom_hint
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.stages import run_stages

pytestmark = pytest.mark.usefixtures("without_pictures")

# 64 images: steps of 24, 24 and 16; in batches of 12 the last of these has 12 and 4 images
ONE = {"training__batch_size": 24, "model__drop_path": 0.0, "training__epochs": 3}
TWO = {**ONE, "training__batch_size": 12, "training__accumulate": 2}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(one, two, weights, steps=9, tolerance=1e-4):
    """Loss and learning rate of each step, and the weights at the end but for what Adam makes of gradients near 0."""
    assert [(line["step"], line["lr"]) for line in lines_of(one)] == [(x["step"], x["lr"]) for x in lines_of(two)]
    assert len(lines_of(one)) == steps
    assert np.abs(read_losses(two) / read_losses(one) - 1).max() < tolerance
    wanted, found = (torch.cat([v.flatten() for v in load_file(f / weights).values()]) for f in (one, two))
    assert (found - wanted).norm() < 10 * tolerance * wanted.norm()


@pytest.mark.parametrize(
    "values",
    [
        {"head__loss": "dense", "training__clip_grad": 0.05},
        {"head__loss": "fused", "training__optimizer": "muon"},
    ],
    ids=["dense-clip", "fused-muon"],
)
def test_batches_of_a_step_of_pretraining_are_one_large_batch(tiny_beton, tmp_path, values):
    """Nothing is mixed, which is done within a batch."""
    folders = [
        pretrain(tiny_config(tiny_beton, tmp_path / name, cutmix__alpha=0.0, **values, **sizes))
        for name, sizes in (("one", ONE), ("two", TWO))
    ]
    assert_same(*folders, "backbone.safetensors")


def test_batches_of_a_step_of_fine_tuning_are_one_large_batch(tiny_beton, tmp_path):
    """With the moving average, which moves once a step."""
    values = {"mixup_cutmix__alpha": 0.0, "training__ema": 0.9, "training__layer_decay": 0.7}
    for name, sizes in (("one", ONE), ("two", TWO)):
        finetune(tiny_config(tiny_beton, tmp_path / name, FINETUNE, **values, **sizes))
    assert_same(tmp_path / "one", tmp_path / "two", "model.safetensors")


def test_batches_of_a_step_are_scaled_and_clipped_together_in_fp16(tiny_beton, tmp_path, monkeypatch):
    """On the CPU, with the scaler of a GPU: the gradients are unscaled and clipped once, when all are there."""
    runtime = Runtime(torch.device("cpu"), torch.float16, channels_last=True, compile=False)
    monkeypatch.setattr(pretraining, "resolve_runtime", lambda *args: runtime)
    monkeypatch.setattr(task, "choose_attention", lambda *args: None)  # for types that CPUs are fast with
    values = {"cutmix__alpha": 0.0, "training__clip_grad": 0.05, "training__epochs": 1}
    folders = [
        pretrain(tiny_config(tiny_beton, tmp_path / name, **sizes | values))
        for name, sizes in (("one", ONE), ("two", TWO))
    ]
    state = checkpoint.newest(folders[1] / "checkpoints")[1]
    assert state["scaler"]["_growth_tracker"] == 3  # once a step, not once a batch
    assert_same(*folders, "backbone.safetensors", steps=3, tolerance=5e-3)


def test_a_batch_that_is_not_finite_skips_its_whole_step(tiny_beton, tmp_path, monkeypatch):
    """The second batch of the third step of two; the message of a run that ends so names the rows of both."""
    seen, forward = [], IDMM.forward

    def spoiled(self, *args):
        seen.append(torch.cat([p.detach().flatten() for p in self.parameters()]))
        return forward(self, *args) * (float("nan") if len(seen) == 6 else 1.0)

    monkeypatch.setattr(IDMM, "forward", spoiled)
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__accumulate=2, training__epochs=2))
    assert not torch.equal(seen[2], seen[4])
    assert torch.equal(seen[4], seen[6])  # before and after the third step
    assert [line["step"] for line in lines_of(folder) if "loss" not in line] == [2]
    assert len(lines_of(folder)) == 4
    values = {"training__accumulate": 4, "training__batch_size": 2, "training__max_nonfinite_steps": 1}
    monkeypatch.setattr(IDMM, "forward", lambda self, *args: forward(self, *args) * float("inf"))
    with pytest.raises(FloatingPointError) as error:
        pretrain(tiny_config(tiny_beton, tmp_path / "bad", **values))
    assert len(str(error.value).split("held the rows ")[1].split(" of ")[0].split(", ")) == 8


def test_a_run_resumes_between_two_steps_of_an_epoch(tiny_beton, tmp_path):
    """Bit for bit, from a checkpoint within an epoch; drop path and mixing as they were."""
    values = {"training__batch_size": 12, "training__accumulate": 2, "training__checkpoint_minutes": 1e-9}
    values |= {"training__keep_checkpoints": 100, "training__resume": "auto", "training__epochs": 2}
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values)
    first = finetune(cfg)
    wanted = read_losses(tmp_path / "f")
    for path in checkpoint.listing(tmp_path / "f" / "checkpoints"):
        if checkpoint.step_of(path) > 4:
            path.unlink()
    kept, state = checkpoint.newest(tmp_path / "f" / "checkpoints")
    assert checkpoint.step_of(kept) == 4
    assert state["loader"] == {"epoch": 1, "step": 2}  # batches
    assert finetune(cfg) == first
    assert np.array_equal(read_losses(tmp_path / "f"), wanted)
    with pytest.raises(ConfigError, match=r"started with training\.accumulate=2, not 3"):
        finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values | {"training__accumulate": 3}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "fused"])
def test_batches_of_a_step_add_up_over_processes(tiny_beton, tmp_path, kind):
    """Two processes with 9 images of a batch of 18 each; 64 images are steps of 36 and 28, the last batch has 10."""
    one = {**ONE, "training__batch_size": 36, "cutmix__alpha": 0.0, "head__loss": kind}
    alone = pretrain(tiny_config(tiny_beton, tmp_path / "one", **one))
    keys = ["--training.batch_size=18", "--training.accumulate=2", "--training.epochs=3", "--cutmix.alpha=0"]
    keys += ["--model.drop_path=0", f"--head.loss={kind}"]
    command = torchrun_command(2, tiny_beton, tmp_path / "two", *keys)
    shown = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert_same(alone, tmp_path / "two", "backbone.safetensors", steps=6)


def test_processes_exchange_gradients_once_a_step():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = DistributedDataParallel(nn.Linear(2, 2))
        with without_exchange(module):
            assert not module.require_backward_grad_sync
        assert module.require_backward_grad_sync
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method__name": "simclr"}, "simclr needs the images of a step in one batch"),
        ({"head__sample_rate": 0.5}, "each batch would draw a sample of its own"),
    ],
)
def test_what_does_not_add_up_is_refused(tiny_beton, tmp_path, values, says):
    with pytest.raises(ConfigError, match=says):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", training__accumulate=2, **values))
    assert not (tmp_path / "run").exists()


def test_the_first_line_counts_steps_of_several_batches(tiny_beton, tmp_path, capfd):
    pretrain(tiny_config(tiny_beton, tmp_path / "two", training__accumulate=3, training__epochs=1))
    assert "1 epochs of 2 steps of 3 batches;" in "".join(capfd.readouterr())
    pretrain(tiny_config(tiny_beton, tmp_path / "all", training__accumulate=9, training__epochs=1))
    said = "".join(capfd.readouterr())
    assert "training.accumulate 9 is more than the 4 batches of an epoch" in said
    assert "1 epochs of 1 step of 9 batches;" in said


@pytest.mark.parametrize(("allowed", "says"), [(True, "--training.accumulate=6 a step has its images"), (False, "")])
def test_a_batch_that_does_not_fit_is_told_how_its_step_would(allowed, says):
    training = SimpleNamespace(batch_size=64, accumulate=2)
    with pytest.raises(MemoryError) as error, oom_hint(training, allowed, lambda: 24):
        raise MemoryError("none left")
    assert "--training.batch_size=24 should fit" in str(error.value)
    assert says in str(error.value)
    assert ("accumulate" in str(error.value)) == allowed


@pytest.mark.parametrize(
    ("processes", "multiple", "says"),
    [
        (1, 1, "(no memory). --training.batch_size=24 should fit,"),
        (1, 16, "--training.batch_size=16 should fit,"),
        (1, 64, "(no memory). A smaller model.image_size or training.amp=bf16 takes less."),
        (2, 1, "--training.batch_size=32 should fit,"),  # the other one does not answer
        (2, 12, "--training.batch_size=24 should fit,"),
    ],
)
def test_the_batch_that_is_named_is_one_that_can_be_taken(monkeypatch, processes, multiple, says):
    monkeypatch.setattr(distributed, "world", lambda: processes)
    training, asked = SimpleNamespace(batch_size=64, accumulate=1), []
    with pytest.raises(MemoryError) as error, oom_hint(training, False, lambda: asked.append(1) or 24, multiple):
        raise MemoryError
    assert says in str(error.value)
    assert len(asked) == (processes == 1)


def test_a_model_that_does_not_fit_is_told_too(tiny_beton, tmp_path, monkeypatch):
    """Before there is a step, or while it is looked for what fits."""

    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(batch_size, "bytes_of_a_step", fails)
    with pytest.raises(MemoryError, match=r"^a step of three images does not fit .*allocate 2 GiB\.\). Use a smaller"):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", training__batch_size="auto"))
    monkeypatch.setattr(Runtime, "to_device", fails)
    with pytest.raises(MemoryError, match=r"^the model does not fit"):
        pretrain(tiny_config(tiny_beton, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_stages_are_all_checked_before_the_first_begins(tiny_beton, tmp_path):
    stages = [{"training.epochs": 1}, {"training.patience": 3}]
    with pytest.raises(ConfigError, match=r"training\.patience needs data\.val"):
        run_stages(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, progressive__stages=stages))
    assert not (tmp_path / "f").exists()
