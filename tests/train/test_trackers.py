"""Weights & Biases and MLflow get the numbers of metrics.jsonl; here from stand-ins that write down what they are told.

Where the packages are installed, they run too, offline.
"""

import importlib.util
import json
import sys
import threading

import pytest
from helpers import FINETUNE, tiny_config

from idmm_fast.config import ConfigError
from idmm_fast.train import checkpoint, trackers
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("without_pictures")

WANDB = """
import itertools
CALLS, numbers = [], itertools.count(1)

class Run:
    def __init__(self, id):
        self.id = id
    def define_metric(self, name, step_metric=None):
        CALLS.append(("define", name, step_metric))
    def log(self, values):
        CALLS.append(("log", self.id, values))
    def finish(self, exit_code):
        CALLS.append(("finish", self.id, exit_code))

def Settings(**settings):
    return settings

def init(project, name, dir, config, settings, id=None, resume=None, allow_val_change=None):
    assert settings == {"disable_git": True, "disable_code": True, "console": "off"}
    CALLS.append(("init", project, name, dir, config, id, resume))
    return Run(id or f"run{next(numbers)}")
"""
MLFLOW = """
import types
CALLS = []

class MlflowClient:
    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="7") if name == "known" else None
    def create_experiment(self, name):
        CALLS.append(("experiment", name))
        return "8"
    def create_run(self, experiment_id, run_name):
        CALLS.append(("create", experiment_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))
    def update_run(self, run_id, status):
        CALLS.append(("update", run_id, status))
    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100 and len(metrics) <= 1000
        CALLS.append(("batch", run_id, list(metrics), list(params)))
    def set_terminated(self, run_id, status):
        CALLS.append(("end", run_id, status))
"""
ENTITIES = """
import collections
Metric = collections.namedtuple("Metric", "key value timestamp step")
Param = collections.namedtuple("Param", "key value")
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Modules of these names that are found first."""
    folder = tmp_path / "packages"
    (folder / "mlflow").mkdir(parents=True)
    (folder / "wandb.py").write_text(WANDB)
    (folder / "mlflow" / "__init__.py").write_text(MLFLOW)
    (folder / "mlflow" / "entities.py").write_text(ENTITIES)
    for name in [name for name in sys.modules if name.split(".")[0] in trackers.PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in trackers.PACKAGES]:
        del sys.modules[name]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_both_get_the_numbers_of_every_step_and_evaluation_and_a_resumed_run_continues_its_own(
    stand_ins, tiny_beton, tmp_path
):
    values = {"training__epochs": 2, "training__evaluate_every": 1, "training__resume": "auto"}
    values |= {"logging__wandb": "birds", "logging__mlflow": "owls", "training__keep_checkpoints": 9}
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values)
    finetune(cfg)
    import mlflow
    import wandb

    lines = lines_of(tmp_path / "f")
    told = {}
    for kind, *rest in wandb.CALLS:
        if kind == "log":
            told.setdefault(rest[1]["step"], {}).update(rest[1])
    assert list(told.values()) == lines
    sent = {}
    for kind, *rest in mlflow.CALLS:
        for metric in rest[1] if kind == "batch" else ():
            sent.setdefault(metric.step, {"step": metric.step})[metric.key] = metric.value
    assert list(sent.values()) == lines

    (_, project, name, folder, config, known, _) = wandb.CALLS[0]
    assert (project, name, folder, known) == ("birds", "f", str(tmp_path / "f"), None)
    assert config["training"]["epochs"] == 2
    assert wandb.CALLS[-1] == ("finish", "run1", 0)
    assert mlflow.CALLS[:2] == [("experiment", "owls"), ("create", "8", "f")]
    params = {p.key: p.value for kind, *rest in mlflow.CALLS if kind == "batch" for p in rest[2]}
    assert params["model.image_size"] == "32"
    assert mlflow.CALLS[-1] == ("end", "abc", "FINISHED")

    for path in checkpoint.listing(tmp_path / "f" / "checkpoints")[1:]:
        path.unlink()
    wandb.CALLS.clear()
    mlflow.CALLS.clear()
    finetune(cfg)
    assert wandb.CALLS[0][-2:] == ("run1", "allow")
    assert {rest[0] for kind, *rest in wandb.CALLS if kind == "log"} == {"run1"}
    assert [rest[1]["step"] for kind, *rest in wandb.CALLS if kind == "log" and "loss" in rest[1]] == [4, 5, 6, 7]
    assert mlflow.CALLS[0] == ("update", "abc", "RUNNING")
    assert not [kind for kind, *_ in mlflow.CALLS if kind == "create"]


def test_one_that_is_away_gets_all_numbers_later_and_training_does_not_wait(
    stand_ins, tiny_beton, tmp_path, monkeypatch
):
    import mlflow

    monkeypatch.setattr(trackers, "SEND_SECONDS", 0.01)
    send, failures = mlflow.MlflowClient.log_batch, iter(range(3))

    def fail_at_first(self, run_id, metrics=(), params=()):
        if metrics and next(failures, None) is not None:
            raise ConnectionError("no network")
        send(self, run_id, metrics, params)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail_at_first)
    with pytest.warns(UserWarning, match=r"logging\.mlflow failed \(ConnectionError: no network\), and is tried again"):
        folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=1, logging__mlflow="known"))
    sent = [metric for kind, *rest in mlflow.CALLS if kind == "batch" for metric in rest[1]]
    assert {m.step: m.value for m in sent if m.key == "loss"} == {x["step"]: x["loss"] for x in lines_of(folder)}
    assert len([m for m in sent if m.key == "loss"]) == 4  # each once

    waits, went_on = threading.Event(), tmp_path / "slow"
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_batch", lambda self, *args, metrics=(), **more: metrics and waits.wait()
    )
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    with pytest.warns(UserWarning, match=r"logging\.mlflow did not take all numbers within 0\.1 s"):
        pretrain(tiny_config(tiny_beton, went_on, training__epochs=1, logging__mlflow="known"))
    waits.set()
    assert len(lines_of(went_on)) == 4


def test_one_that_cannot_begin_refuses_a_new_run_but_not_one_that_resumes(stand_ins, tiny_beton, tmp_path, monkeypatch):
    import mlflow

    def fail(*args, **options):
        raise ConnectionError("no network")

    values = {"logging__mlflow": "known", "training__resume": "auto", "training__epochs": 2}
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__keep_checkpoints=9, **values)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_run", fail)
        with pytest.raises(ConfigError, match=r"logging\.mlflow=known: ConnectionError: no network"):
            pretrain(cfg)
        assert not (tmp_path / "run" / "config.yaml").exists()
    pretrain(cfg)
    checkpoint.listing(tmp_path / "run" / "checkpoints")[-1].unlink()
    monkeypatch.setattr(mlflow.MlflowClient, "update_run", fail)
    with pytest.warns(UserWarning, match="the run goes on without it"):
        pretrain(cfg)
    assert len(lines_of(tmp_path / "run")) == 8
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"mlflow": "abc"}  # for the next time


def test_a_run_that_fails_is_a_failed_run_there(stand_ins, tiny_beton, tmp_path):
    import mlflow
    import wandb

    values = {"training__lr": 1e30, "training__warmup_epochs": 0, "training__max_nonfinite_steps": 2}
    with pytest.raises(FloatingPointError):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", logging__wandb="a", logging__mlflow="known", **values))
    assert wandb.CALLS[-1] == ("finish", "run1", 1)
    assert mlflow.CALLS[-1] == ("end", "abc", "FAILED")
    values = {"training__epochs": 1, "logging__mlflow": "known"}
    try:
        raise MemoryError("of a first try")
    except MemoryError:  # which a second one answers; it does not fail
        pretrain(tiny_config(tiny_beton, tmp_path / "second", **values))
    assert mlflow.CALLS[-1] == ("end", "abc", "FINISHED")


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_a_package_that_is_missing_is_said_before_anything_is_written(tiny_beton, tmp_path, monkeypatch, name):
    """A folder of its name in the working directory, which wandb itself makes, is no package."""
    (tmp_path / name).mkdir()
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=rf"logging\.{name} needs the package {name}: pip install -e '\.\[{name}\]'"):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", **{f"logging__{name}": "x"}))
    assert not (tmp_path / "run").exists()
    sys.modules.pop(name, None)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_keeps_a_run_offline(tiny_beton, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    values = {"training__epochs": 1, "logging__wandb": "birds"}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", **values))
    (kept,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert json.loads((folder / "trackers.json").read_text())["wandb"] in kept.name
    assert kept.stat().st_size > 1000


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself_keeps_a_run_in_a_folder_and_continues_it(tiny_beton, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    values = {"logging__mlflow": "owls", "training__resume": "auto", "training__keep_checkpoints": 9}
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__epochs=2, **values)
    folder = pretrain(cfg)
    run_id = json.loads((folder / "trackers.json").read_text())["mlflow"]
    for path in checkpoint.listing(folder / "checkpoints")[1:]:
        path.unlink()
    pretrain(cfg)
    assert json.loads((folder / "trackers.json").read_text())["mlflow"] == run_id
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.params["training.epochs"]) == ("run", "FINISHED", "2")
    losses = {metric.step: metric.value for metric in client.get_metric_history(run_id, "loss")}
    assert losses == {line["step"]: line["loss"] for line in lines_of(folder)}
