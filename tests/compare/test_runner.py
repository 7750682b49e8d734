"""The runs of one pretraining: what they cost, stopped or not; what fails in one harms no other."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import FINETUNE, PRETRAIN

from idmm_fast.beton import open_beton, write_beton
from idmm_fast.compare.runner import Runner
from idmm_fast.compare.runs import SweepAxes, make_runs
from idmm_fast.compare.spec import RunSpec, SweepConfig
from idmm_fast.compare.subsets import DatasetFiles
from idmm_fast.config import as_dict
from idmm_fast.config import replace as with_changes
from idmm_fast.datasets import Split
from idmm_fast.errors import Stopped
from idmm_fast.train import stopwatch
from idmm_fast.train.finetuning import choose_rows

RUN = RunSpec("tiny", 0, "balanced", "idmm", 0, 768, "same", 128)  # two epochs of six crops of 64 images
RESULT = {"top1": 50.0, "top5": 90.0, "train_images": 64}


def make_runner(sweep_dir, **training):
    """A runner of the small sweep, with other values for the section `training` of its pretrainings."""
    tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
    tree["pretrain"]["training"] = tree["pretrain"]["training"] | training
    (sweep_dir / "compare.yaml").write_text(yaml.safe_dump(tree))
    files = DatasetFiles(sweep_dir / "data", sweep_dir / "made")
    return Runner(SweepConfig(sweep_dir / "compare.yaml"), files, sweep_dir / "runs", torch.get_num_threads())


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds, as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    return now


def leave(cfg, steps, now, schema=PRETRAIN, **changes):
    """What a training leaves in its run folder that has trained up to so many steps by the time `now`."""
    folder = Path(cfg.logging.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    used = with_changes(schema, cfg, {f"training.{key}": value for key, value in changes.items()})
    (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(used)))
    (folder / "metrics.jsonl").write_text("{}\n" * steps)
    os.utime(folder / "metrics.jsonl", (now, now))
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / f"epoch_0000_step_{steps}.pt").touch()


def trainer(clock, calls, schema=PRETRAIN, end="done"):
    """A training in calls of (seconds, steps so far); all but the last end by `end`, a stop or a kill."""
    left = list(calls)

    def train(cfg):
        seconds, steps = left.pop(0)
        clock[0] += seconds
        leave(cfg, steps, clock[0], schema)
        if not left:
            return RESULT
        seconds_file = Path(cfg.logging.run_dir) / "seconds.json"
        raise Stopped(seconds_file, seconds_file.read_text()) if end == "killed" else Stopped()

    return train


def stop(call):
    """Make a call that is stopped; after a kill seconds.json is as it was while the call ran."""
    with pytest.raises(Stopped) as stopped:
        call()
    if stopped.value.args:
        file, text = stopped.value.args
        file.write_text(text)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_the_seconds_of_a_stopped_pretraining_are_those_of_all_its_calls(sweep_dir, clock, monkeypatch, end):
    """Start-up included, whatever the steps of a call; of a killed one up to the last step that it logged."""
    runner, train = make_runner(sweep_dir), sweep_dir / "data" / "tiny_train.beton"
    monkeypatch.setattr("idmm_fast.train.pretraining.pretrain", trainer(clock, [(100, 3), (30, 4)], end=end))
    stop(lambda: runner._pretrain(RUN, train, 64, sweep_dir / "p"))
    clock[0] += 5000
    cost = runner._pretrain(RUN, train, 64, sweep_dir / "p")
    assert (cost["pretrain_seconds"], cost["epochs"], cost["crops"]) == (130.0, 2, 768)
    assert runner._pretrain(RUN, train, 64, sweep_dir / "p") == cost  # kept


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_the_seconds_of_a_stopped_finetuning_are_those_of_all_its_calls(sweep_dir, clock, monkeypatch, end):
    """One that begins anew, since its checkpoints are gone, counts anew."""
    runner = make_runner(sweep_dir)
    _, *betons = runner.files.of(RUN)
    calls = [(100, 1), (30, 4)]
    monkeypatch.setattr("idmm_fast.train.finetuning.finetune", trainer(clock, calls, FINETUNE, end))
    stop(lambda: runner._finetune(RUN, betons, None, sweep_dir / "home"))
    clock[0] += 5000
    found, _ = runner._finetune(RUN, betons, None, sweep_dir / "home")
    assert (found["finetune_seconds"], found["top1"]) == (130.0, 50.0)
    assert runner._finetune(RUN, betons, None, sweep_dir / "home")[0] == found  # kept
    (kept,) = (sweep_dir / "home").rglob("found.json")
    kept.unlink()
    monkeypatch.setattr("idmm_fast.train.finetuning.finetune", trainer(clock, [(40, 4)], FINETUNE))
    again, _ = runner._finetune(RUN, betons, None, sweep_dir / "home")
    assert again["finetune_seconds"] == 40.0


def test_a_finetuning_is_not_repeated_when_the_evaluation_after_it_failed(sweep_dir, clock, monkeypatch):
    """A second call of the finetuning would find no more seconds."""
    run = replace(RUN, method="random", budget=0)
    monkeypatch.setattr("idmm_fast.train.finetuning.finetune", trainer(clock, [(100, 4)], FINETUNE))
    told = []
    for evaluation in (MemoryError("full"), None):

        def evaluate(cfg, *_, evaluation=evaluation):
            if evaluation:
                raise evaluation
            return {"knn20": 2.0}

        runner = make_runner(sweep_dir)
        monkeypatch.setattr(runner, "_evaluate", evaluate)
        runner.run([run], lambda run, result: told.append(result), lambda run, error: told.append(str(error)))
    assert told[0] == "full"
    assert (told[1]["finetune_seconds"], told[1]["top1"], told[1]["knn20"]) == (100.0, 50.0, 2.0)


@pytest.mark.parametrize(
    ("per_class", "labels", "images"),
    [(3, [0, 1] * 8, 6), (0, [-1] * 6 + [0, 1] * 5, 10), (2, [-1] * 6 + [0, 1] * 5, 4)],
)
def test_a_finetuning_sees_its_budget_of_the_images_that_it_takes(sweep_dir, monkeypatch, per_class, labels, images):
    """Of so many of each class, and without those that have no label; a budget per image is of these too."""
    tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
    tree["finetune"]["data"] = {"per_class": per_class}
    (sweep_dir / "compare.yaml").write_text(yaml.safe_dump(tree))
    noise = list(np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8))
    for split in ("train", "test"):
        path = sweep_dir / "data" / f"some_{split}.beton"
        write_beton(path, Split(noise, labels, ["a", "b"]), dataset="test", name=split, mode="raw", quiet=True)
    runner, seen = make_runner(sweep_dir), []
    axes = SweepAxes(["some"], ["random"], finetune_budget=["240", "20x"], seeds=[5])
    runs = make_runs(axes, runner.config, sweep_dir / "data")
    assert [run.finetune_budget for run in runs] == [240, 20 * images]

    def finetune(cfg):
        rows = choose_rows(open_beton(cfg.data.train).label, cfg.data.per_class, cfg.training.seed)
        seen.append(cfg.training.epochs * len(rows))
        raise Stopped

    monkeypatch.setattr("idmm_fast.train.finetuning.finetune", finetune)
    for run in runs:
        with pytest.raises(Stopped):
            runner.run([run], None, None)
    assert seen == [240, 20 * images]


def test_crops_are_counted_by_the_batch_size_that_was_used(sweep_dir, monkeypatch):
    """A step of two batches of 16 images, whatever the sweep file says."""
    runner = make_runner(sweep_dir, batch_size="auto")
    monkeypatch.setattr(
        "idmm_fast.train.pretraining.pretrain", lambda cfg: leave(cfg, 4, 0.0, batch_size=16, accumulate=2)
    )
    cost = runner._pretrain(RUN, sweep_dir / "data" / "tiny_train.beton", 64, sweep_dir / "p")
    assert (cost["epochs"], cost["crops"]) == (2, 768)


@pytest.mark.integration
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("training", [{"batch_size": "auto"}, {"batch_size": 16, "accumulate": 2}], ids=str)
def test_crops_of_a_pretraining_are_those_of_its_epochs(sweep_dir, training):
    runner = make_runner(sweep_dir, **training)
    cost = runner._pretrain(RUN, sweep_dir / "data" / "tiny_train.beton", 64, sweep_dir / "p")
    assert (cost["epochs"], cost["crops"]) == (2, 768)


def test_a_run_that_fails_harms_no_other_of_its_pretraining(sweep_dir, monkeypatch):
    """It is told of with its error; a stop ends all."""
    runner, told = make_runner(sweep_dir), []
    error = ValueError("odd")

    def finetune(run, *_):
        if run.target in ("odd", "stop"):
            raise error if run.target == "odd" else Stopped
        return {"top1": 1.0}, None

    monkeypatch.setattr(runner, "_pretrain", lambda *_: {"crops": 6})
    monkeypatch.setattr(runner, "_finetune", finetune)
    monkeypatch.setattr(runner, "_evaluate", lambda *_: {"knn20": 2.0})
    runs = [replace(RUN, target=target) for target in ("same", "odd", "tiny", "stop", "same")]

    def tell(*what):
        told.append(what)

    with pytest.raises(Stopped):
        runner.run(runs, tell, tell)
    done = {"pretraining_images": 64, "crops": 6, "top1": 1.0, "knn20": 2.0}
    assert told == [(runs[0], done), (runs[1], error), (runs[2], done)]
