"""How long a training takes: measured on a tiny network, and the minutes that follow from a rate."""

import contextlib
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import PRETRAIN, tiny_config
from PIL import Image

from idmm_fast.bench import minutes
from idmm_fast.beton import open_beton, write_beton
from idmm_fast.commands import inspect as command
from idmm_fast.datasets import Split, folder
from idmm_fast.inspect import Command
from idmm_fast.train.pretraining import Pretraining

TINY = {
    "model.name": "vit_tiny_patch16_224",
    "model.options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "model.image_size": 32,
}


@pytest.mark.usefixtures("compiled_kernels")
def test_minutes_follow_from_the_rate(tiny_beton, monkeypatch):
    """10 images/s: the 20 minutes of `own`, or 800 epochs of 300 images; 200 epochs, and 20 tests of 90."""
    seen = []

    def measure(task, seconds):
        seen.append((type(task).__name__, task.loader.indices.size, task.loader.batch_size))
        return 10.0, 0.0, 7

    monkeypatch.setattr(minutes, "measure", measure)
    beton = open_beton(tiny_beton)
    rows = range(len(beton))
    pretrain = minutes.measure_pace("pretrain", TINY, beton, rows)
    assert pretrain == minutes.Pace(10.0, 7, 20, 800, 1, 128, 128)
    assert pretrain.minutes(300) == 20
    assert pretrain.epochs_in(20, 300) == pytest.approx(20 * 60 * 10 / 300)
    assert replace(pretrain, limit=0).minutes(300) == pytest.approx(800 * 300 / 10 / 60)
    finetune = minutes.measure_pace("finetune", TINY, beton, rows)
    assert finetune == minutes.Pace(10.0, 7, 0, 200, 20, 256, 256)
    assert finetune.minutes(300, 90) == pytest.approx((200 * 300 + 20 * 90 / 3) / 10 / 60)
    minutes.measure_pace("pretrain", TINY, beton, [3, 5, 8])
    assert seen == [("Pretraining", 32, 16), ("Finetuning", 32, 16), ("Pretraining", 3, 3)]


@pytest.mark.usefixtures("compiled_kernels")
def test_the_rate_is_that_of_the_steps_after_the_first(tiny_beton, tmp_path, monkeypatch):
    """Steps that sleep for 30 ms each, the first one for 200: 16 images in each but an epoch's last."""
    cfg = tiny_config(tiny_beton, tmp_path, PRETRAIN, training__batch_size=16)
    task, loss, slept = Pretraining(cfg), Pretraining.loss, []

    def slow(self, groups, epoch, step):
        slept.append(0.2 if not slept else 0.03)
        time.sleep(slept[-1])
        return loss(self, groups, epoch, step)

    monkeypatch.setattr(Pretraining, "loss", slow)
    rate, _, steps = minutes.measure(task, 0.25)
    assert steps == len(slept) - 1
    assert 2 <= steps <= 8
    assert rate <= 16 / 0.03
    assert rate > 16 / 0.2


def measured(monkeypatch, step_seconds, seconds):
    """`measure` by a clock that only steps move: so many seconds each, the last of them again and again."""
    clock, left = [0.0], list(step_seconds)
    monkeypatch.setattr(minutes, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(minutes, "make_optimizers", lambda model, _: [])
    monkeypatch.setattr(minutes, "prefetch_to_device", lambda loader, device: [0] * 2)
    for name in ("choose_attention", "choose_layers"):
        monkeypatch.setattr(minutes, name, lambda model, runtime: None)

    def loss(groups, epoch, step):
        clock[0] += left.pop(0) if len(left) > 1 else left[0]
        return torch.ones(1, requires_grad=True).sum()

    task = SimpleNamespace(
        model=None,
        runtime=SimpleNamespace(device="cpu", autocast=contextlib.nullcontext),
        cfg=SimpleNamespace(training=None),
        loader=SimpleNamespace(close=lambda: None, global_batch_len=lambda step: 8),
        loss=loss,
    )
    return minutes.measure(task, seconds)


def test_a_first_step_of_any_length_is_not_counted(monkeypatch):
    """One that compiles kernels takes longer than all that are timed; of slow steps two are timed."""
    assert measured(monkeypatch, [60, 1], 6) == (pytest.approx(8), 0, 6)
    assert measured(monkeypatch, [60, 20], 6) == (pytest.approx(8 / 20), 0, 2)


def test_one_step_is_no_measurement(monkeypatch):
    with pytest.raises(ValueError, match="a step takes 25 s, too long to measure"):
        measured(monkeypatch, [25], 6)


class SlowOptimizer(torch.optim.SGD):
    """Takes 50 ms for an update."""

    def step(self, closure=None):
        time.sleep(0.05)
        return super().step(closure)


@pytest.mark.parametrize("batch", [8, 16])
def test_an_update_is_timed_by_itself(monkeypatch, batch):
    """Steps of 10 ms for the loss and 50 for the update, whatever the number of images."""
    monkeypatch.setattr(minutes, "make_optimizers", lambda model, _: [SlowOptimizer(model.parameters(), 0.0)])
    monkeypatch.setattr(minutes, "prefetch_to_device", lambda loader, device: [0] * 4)
    for name in ("choose_attention", "choose_layers"):
        monkeypatch.setattr(minutes, name, lambda model, runtime: None)
    model = torch.nn.Linear(4, 4)
    task = SimpleNamespace(
        model=model,
        runtime=SimpleNamespace(device="cpu", autocast=contextlib.nullcontext),
        cfg=SimpleNamespace(training=None),
        loader=SimpleNamespace(close=lambda: None, global_batch_len=lambda step: batch),
        loss=lambda groups, epoch, step: time.sleep(0.01) or model(torch.ones(batch, 4)).sum(),
    )
    rate, update, steps = minutes.measure(task, 0.3)
    assert 0.05 <= update < 0.1
    assert batch / 0.05 < rate <= batch / 0.01
    assert 2 <= steps <= 5


@pytest.mark.usefixtures("compiled_kernels")
def test_a_slow_update_counts_once_a_step_of_the_recipe(tiny_beton, monkeypatch):
    """64 images at 10/s and an update of 4 s take 10.4 s."""
    monkeypatch.setattr(minutes, "measure", lambda task, seconds: (10.0, 4.0, 7))
    beton = open_beton(tiny_beton)
    pace = minutes.measure_pace("pretrain", TINY, beton, range(len(beton)))
    assert pace.images_per_s == pytest.approx(64 / 10.4)
    few = minutes.measure_pace("pretrain", TINY, beton, range(20))
    assert few.images_per_s == pytest.approx(20 / 6)


@pytest.mark.usefixtures("compiled_kernels")
def test_images_of_a_folder_are_taken_from_all_classes(tmp_path, photos, monkeypatch):
    for k in range(40):
        path = tmp_path / "x" / f"c{k // 10}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[k % 8][:40, :40]).save(path)
    labels = []
    monkeypatch.setattr(minutes, "measure", lambda task, seconds: labels.append(task.labels.tolist()) or (1.0, 0.0, 1))
    split = folder.load(tmp_path / "x")["train"]
    rows = [row for row in range(40) if row != 7]
    minutes.measure_pace("finetune", TINY, split, rows)
    assert len(labels[0]) == 32
    counts = [labels[0].count(label) for label in range(4)]
    assert all(6 <= count <= 10 for count in counts)


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("last", [0, 1], ids=["in the middle", "at the end"])
def test_a_rare_class_is_among_the_images_that_are_measured(tmp_path, monkeypatch, last):
    """300 images of one class and three of another, which a fine-tuning needs."""
    labels = [0] * 303
    for row in (300, 301, 302) if last else (151, 153, 155):
        labels[row] = 1
    noise = list(np.random.default_rng(0).integers(0, 256, (303, 16, 16, 3), np.uint8))
    path = tmp_path / "rare.beton"
    write_beton(path, Split(noise, labels, ["a", "b"]), dataset="test", name="train", mode="raw", quiet=True)
    seen = []
    monkeypatch.setattr(minutes, "measure", lambda task, seconds: seen.append(task.labels.tolist()) or (1.0, 0.0, 1))
    rows = [row for row in range(303) if row != 302]
    minutes.measure_pace("finetune", TINY, open_beton(path), rows[:-1] if last else rows)
    assert set(seen[0]) == {0, 1}
    assert len(seen[0]) == 32


def test_long_short_and_large_trainings_get_advice():
    def lines(images, verb="finetune", text="", fits=256, evaluations=0, limit=0):
        pace = minutes.Pace(10.0, 3, limit, 800, evaluations, 256, fits)
        return command.time_lines(Command(verb, text, images=images, tested=300), pace)

    assert lines(359) == ["about 8.0 hours on this machine: 800 epochs, 10 images/s in 3 steps"]
    ends = "--training.minutes=480 ends it after 8 hours, with the whole schedule in"
    assert lines(359, evaluations=60)[1] == f"{ends} 785 epochs"
    assert lines(4 * 360, fits=100) == [
        "about 32 hours on this machine: 800 epochs, 10 images/s in 3 steps",
        f"{ends} 200 epochs",
        "256 images a step do not fit into memory: --training.batch_size=auto",
    ]
    assert len(lines(4 * 360, text="--folds 5")) == 1
    assert len(lines(100, fits=100)) == 1  # all that there are
    assert lines(120, limit=20) == ["20 minutes: about 100 epochs on this machine, 10 images/s in 3 steps"]
    few = "that is few: --training.minutes="
    assert lines(1000, limit=20)[1] == f"{few}340 makes it about 204"
    assert lines(10000, limit=20)[1] == f"{few}480 makes it about 28"
    words = {0.2: "a minute", 2: "2 minutes", 2.34: "2.3 minutes", 89: "89 minutes", 90: "1.5 hours", 5000: "3.5 days"}
    assert {length: command.duration(length) for length in words} == words
