"""A run that is stopped anywhere and resumed ends as the uninterrupted one; nothing is lost on the way."""

import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import FINETUNE, read_losses, tiny_config
from hypothesis import HealthCheck, Phase, given, strategies
from hypothesis import settings as examples
from safetensors.torch import load_file, save_file

from idmm_fast.beton import BetonError, open_beton, write_beton
from idmm_fast.config import ConfigError, as_dict
from idmm_fast.datasets import Split
from idmm_fast.evaluate.online import OnlineEvaluation
from idmm_fast.loader import MultiCropLoader
from idmm_fast.methods import IDMM
from idmm_fast.runtime import distributed
from idmm_fast.runtime.device import Runtime
from idmm_fast.train import checkpoint, task
from idmm_fast.train import trainer as loop
from idmm_fast.train.finetuning import Finetuning, finetune
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.run_dir import OtherInputs, RunDir
from idmm_fast.train.signals import Interrupted, SignalFlag

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.integration]

SMALL = {"model__options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}, "model__image_size": 16}


def metrics(folder):
    """The lines of metrics.jsonl, but for how fast it was."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in lines]


class Killed(BaseException):
    """What nobody catches."""


class Stops:
    """Stops a run once: by a signal in a step, or as if killed, before or after the Nth call of a method of RunDir."""

    def __init__(self, monkeypatch):
        self.signal_at = self.kill_at = None
        for name in ("log", "add", "save", "save_best"):
            monkeypatch.setattr(RunDir, name, self._counted(getattr(RunDir, name)))
        original = loop.Throughput.step

        def step(meter, images):
            if self.signal_at is not None:
                self.signal_at -= 1
                if self.signal_at < 0:
                    self.signal_at = None
                    self.interrupt.signal = 15
            return original(meter, images)

        monkeypatch.setattr(loop.Throughput, "step", step)
        entered = SignalFlag.__enter__

        def enter(interrupt):
            self.interrupt = interrupt
            return entered(interrupt)

        monkeypatch.setattr(SignalFlag, "__enter__", enter)

    def _counted(self, original):
        def counted(run, *args, **kwargs):
            if self._is_due():
                raise Killed
            result = original(run, *args, **kwargs)
            if self._is_due():
                raise Killed
            return result

        return counted

    def _is_due(self):
        if self.kill_at is None:
            return False
        self.kill_at -= 1
        if self.kill_at >= 0:
            return False
        self.kill_at = None
        return True


class _Probe:
    """Numbers that depend on every weight."""

    def check(self):
        pass

    def __call__(self, backbone, runtime):
        return {"knn20": sum(p.detach().double().square().sum().item() for p in backbone.parameters())}


def _train(kind, beton, folder, options):
    if kind == "pretrain":
        return pretrain(tiny_config(beton, folder, **options), _Probe()), None
    return folder, finetune(tiny_config(beton, folder, FINETUNE, **options))


def _ended(kind, folder):
    """All that a finished run leaves and that has numbers in it."""
    weights = load_file(folder / ("backbone.safetensors" if kind == "pretrain" else "model.safetensors"))
    best = folder / "checkpoints" / "best.pt"
    best = checkpoint.load(best) if best.exists() else {"model": {}}
    last = checkpoint.newest(folder / "checkpoints")[1]
    tensors = {
        **weights,
        **{f"best {k}": v for k, v in best["model"].items()},
        **{f"last {k}": v for k, v in last["model"].items()},
        **{f"best average {k}": v for k, v in best.get("average", {}).items()},
        **{f"last average {k}": v for k, v in last.get("average", {}).items()},
    }
    return metrics(folder), {k: v for k, v in best.items() if k not in ("model", "average", "config")}, tensors


def _stopped_and_resumed(kind, beton, options, stops, first, tmp_path):
    """Stopped as `first` (how, when) says and resumed, it must be as never stopped. Returns whether it was stopped."""
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    _, wanted_result = _train(kind, beton, whole, options)
    how, when = first
    setattr(stops, f"{how}_at", when)
    stopped = False
    try:
        _, result = _train(kind, beton, folder, options)
    except (Killed, Interrupted):
        stopped = True
    stops.signal_at = stops.kill_at = None
    _, result = _train(kind, beton, folder, {**options, "training__resume": "auto"})
    lines, best, tensors = _ended(kind, folder)
    wanted_lines, wanted_best, wanted_tensors = _ended(kind, whole)
    assert lines == wanted_lines
    assert best == wanted_best
    assert result == wanted_result
    assert tensors.keys() == wanted_tensors.keys()
    assert all(torch.equal(tensors[k], wanted_tensors[k]) for k in tensors)
    return stopped


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """12 images in 3 classes."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(12)]
    split = Split(images, [k % 3 for k in range(12)], ["a", "b", "c"])
    return write_beton(
        tmp_path_factory.mktemp("few") / "few.beton", split, dataset="t", name="train", mode="raw", quiet=True
    ).path


_stops = strategies.one_of(
    strategies.tuples(strategies.just("signal"), strategies.integers(0, 7)),
    strategies.tuples(strategies.just("kill"), strategies.integers(0, 30)),
)
_options = strategies.fixed_dictionaries(
    {
        "training__batch_size": strategies.sampled_from(
            [3, 5, 12]
        ),  # 4, 3 (the last one partial) and one step an epoch
        "training__checkpoint_every": strategies.sampled_from([1, 2, 5]),
        "training__checkpoint_minutes": strategies.sampled_from([0.0, 1e-9]),
        "training__keep_checkpoints": strategies.integers(1, 3),
        "model__drop_path": strategies.sampled_from([0.0, 0.3]),
        "training__head_lr_scale": strategies.sampled_from([1.0, 3.0]),
        "training__optimizer": strategies.sampled_from(["adamw", "muon"]),
    }
)
_own = {
    "pretrain": {
        "online_eval__every": strategies.integers(0, 2),
        "cutmix__alpha": strategies.sampled_from([0.0, 0.5]),
        "cutmix__from_epoch": strategies.sampled_from([0, 1]),
        "head__loss": strategies.sampled_from(["dense", "fused"]),
    },
    "finetune": {
        "training__evaluate_every": strategies.integers(0, 2),
        "mixup_cutmix__alpha": strategies.sampled_from([0.0, 0.5]),
        "data__per_class": strategies.sampled_from([0, 2]),
        "training__ema": strategies.sampled_from([0.0, 0.9]),
        "training__layer_decay": strategies.sampled_from([1.0, 0.7]),
    },
}


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_any_run_stopped_anywhere_ends_as_if_never_stopped(kind, few, monkeypatch):
    """Any options, any moment of two epochs: metrics, evaluations, best.pt, weights, result, bit for bit."""
    _check_stops(kind, few, monkeypatch, 12)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_many_runs_stopped_anywhere_end_as_if_never_stopped(kind, few, monkeypatch):
    _check_stops(kind, few, monkeypatch, 150)


def _check_stops(kind, few, monkeypatch, count):
    stops, seen = Stops(monkeypatch), []

    @examples(  # not shrunk: a failing example is a whole training each time
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.fixed_dictionaries(_own[kind]), _options, _stops)
    def check(own, options, first):
        with tempfile.TemporaryDirectory() as folder:
            options = {**SMALL, **options, **own, "training__epochs": 2}
            seen.append(_stopped_and_resumed(kind, few, options, stops, first, Path(folder)))

    check()
    assert sum(seen) > count / 4  # else it tests nothing


@pytest.mark.parametrize("batch_size", [12, 6])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_stopped_in_each_step_of_two_epochs(kind, batch_size, few, tmp_path, monkeypatch):
    """With one and two steps an epoch; a stop in an epoch's last step once lost its evaluation, and so best.pt."""
    stops = Stops(monkeypatch)
    own = {"online_eval__every": 1} if kind == "pretrain" else {"training__evaluate_every": 1}
    options = {**SMALL, **own, "training__batch_size": batch_size, "training__epochs": 2}
    for step in range(2 * 12 // batch_size):
        assert _stopped_and_resumed(kind, few, options, stops, ("signal", step), tmp_path / str(step))


@pytest.fixture
def kept(few, tmp_path, monkeypatch):
    """(its configuration, its folder): a run of four epochs of two steps, all of whose checkpoints are kept."""
    options = {**SMALL, "training__batch_size": 6, "training__keep_checkpoints": 4, "training__epochs": 4}
    return options, pretrain(tiny_config(few, tmp_path / "run", **options))


def test_going_on_from_an_older_checkpoint_sets_the_later_ones_aside(kept, few, monkeypatch):
    """New checkpoints, older by their step, were once deleted when written, and auto resumed from the stale ones."""
    options, folder = kept
    before = read_losses(folder)
    older = checkpoint.listing(folder / "checkpoints")[1]
    Stops(monkeypatch).signal_at = 1  # in step 5 of 8
    again = {**options, "training__keep_checkpoints": 2}
    with pytest.raises(Interrupted):
        pretrain(tiny_config(few, folder, training__resume=str(older), **again))
    assert [checkpoint.step_of(p) for p in checkpoint.listing(folder / "checkpoints")] == [4, 6]
    assert [checkpoint.step_of(p) for p in checkpoint.listing(folder / "checkpoints" / "aside_1")] == [6, 8]
    assert np.array_equal(read_losses(folder / "checkpoints" / "aside_1"), before)  # what had been measured is not lost
    pretrain(tiny_config(few, folder, training__resume="auto", **again))
    assert np.array_equal(read_losses(folder), before)


def test_the_best_of_later_epochs_is_set_aside_with_them(few, tmp_path, monkeypatch):
    """Training anew from an older checkpoint had replaced it, however bad the new one was."""
    accuracies = iter([50.0, 60.0, 70.0, 99.0, 55.0, 56.0])
    evaluate = Finetuning.evaluate
    monkeypatch.setattr(Finetuning, "evaluate", lambda *args: evaluate(*args) | {"top1": next(accuracies)})
    options = {**SMALL, "training__epochs": 4, "training__evaluate_every": 1, "training__keep_checkpoints": 4}
    cfg = tiny_config(few, tmp_path, FINETUNE, data__val=str(few), **options)
    finetune(cfg)
    older = checkpoint.listing(tmp_path / "checkpoints")[1]
    finetune(tiny_config(few, tmp_path, FINETUNE, data__val=str(few), training__resume=str(older), **options))
    kept = [checkpoint.load(folder / "best.pt") for folder in (tmp_path / "checkpoints", older.parent / "aside_1")]
    assert [(state["epoch"], state["top1"]) for state in kept] == [(3, 56.0), (3, 99.0)]


def test_a_finished_run_without_checkpoints_is_not_trained_over(kept, few):
    options, folder = kept
    before = (folder / "backbone.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    for resume in ("no", "auto"):
        with pytest.raises(ConfigError, match="holds a finished run, without its checkpoints"):
            pretrain(tiny_config(few, folder, training__resume=resume, **options))
    assert (folder / "backbone.safetensors").read_bytes() == before
    (folder / "backbone.safetensors").unlink()
    pretrain(tiny_config(few, folder, training__resume="auto", **options))
    assert (folder / "backbone.safetensors").read_bytes() == before


def test_what_is_not_of_a_run_stays_in_its_folder(few, tmp_path):
    options = {**SMALL, "training__batch_size": 6, "training__epochs": 1}
    (tmp_path / "config.yaml").write_text("training: {lr: 1.0e-3}  # mine\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is not of a run"):
        pretrain(tiny_config(few, tmp_path, **options))
    assert "mine" in (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(as_dict(tiny_config(few, "elsewhere", **options))))  # a run's
    (tmp_path / "model.safetensors").touch()  # of somebody else
    (tmp_path / "part.tmp").mkdir()
    left = (
        tmp_path / "notes.tmp",
        tmp_path / f"predictions.csv.{os.getpid()}-1.tmp",
        tmp_path / "config.yaml.99999999-1.tmp",
    )
    for path in left:
        path.touch()
    pretrain(tiny_config(few, tmp_path, **options))
    assert [path.exists() for path in (tmp_path / "part.tmp", *left)] == [True, True, True, False]
    below = tmp_path / "below"  # the folder of a run
    below.mkdir()
    (below / "config.yaml").write_text("training: {lr: 1.0e-3}")
    with pytest.raises(ConfigError, match=r"below/config\.yaml is not of a run"):
        pretrain(tiny_config(few, below, **options))


def test_the_folder_is_locked_until_all_is_written(few, tmp_path, monkeypatch):
    """A second start had read and replaced what the first one's evaluation of the test images needed."""
    finish = Finetuning.finish

    def finish_beside_another(task, run):
        with pytest.raises(ConfigError, match="in use by process"):
            finetune(tiny_config(few, tmp_path, FINETUNE, training__resume="auto", **options))
        return finish(task, run)

    options = {**SMALL, "training__epochs": 1}
    monkeypatch.setattr(Finetuning, "finish", finish_beside_another)
    assert finetune(tiny_config(few, tmp_path, FINETUNE, **options))["top1"] >= 0


def test_the_same_first_weights_under_another_path_are_the_same(kept, few, tmp_path):
    """Of a run that was moved with its pretraining, or named by another spelling of its path."""
    options, first = {**SMALL, "training__epochs": 2, "training__keep_checkpoints": 2}, kept[1]
    folder, moved = tmp_path / "finetuning", tmp_path / "moved"
    finetune(tiny_config(few, folder, FINETUNE, model__init=str(first), **options))
    wanted = read_losses(folder)
    checkpoint.listing(folder / "checkpoints")[-1].unlink()
    shutil.move(first, moved)
    finetune(tiny_config(few, folder, FINETUNE, model__init=str(moved), training__resume="auto", **options))
    assert np.array_equal(read_losses(folder), wanted)
    other = dict(load_file(moved / "backbone.safetensors"))
    save_file({k: v + 1 for k, v in other.items()}, moved / "backbone.safetensors")
    with pytest.raises(OtherInputs, match="other weights than those of"):
        finetune(tiny_config(few, folder, FINETUNE, model__init=str(moved), training__resume="auto", **options))


def test_falling_back_from_a_damaged_checkpoint_keeps_what_is_written_then(kept, few):
    options, folder = kept
    before = read_losses(folder)
    for path in checkpoint.listing(folder / "checkpoints")[1:]:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        pretrain(tiny_config(few, folder, training__resume="auto", **{**options, "training__keep_checkpoints": 1}))
    assert [checkpoint.step_of(p) for p in checkpoint.listing(folder / "checkpoints")] == [8]
    assert checkpoint.load(checkpoint.listing(folder / "checkpoints")[0])["step"] == 8
    assert np.array_equal(read_losses(folder), before)


def test_only_damaged_checkpoints_stop_with_a_sentence_and_metrics_are_kept(kept, few):
    options, folder = kept
    before = (folder / "metrics.jsonl").read_bytes()
    for path in checkpoint.listing(folder / "checkpoints"):
        path.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"all 4 checkpoints in .* are damaged"),
    ):
        pretrain(tiny_config(few, folder, training__resume="auto", **options))
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_run_begins_a_new_folder_with_its_history_and_spoils_none(kept, few, tmp_path):
    options, folder = kept
    middle = checkpoint.listing(folder / "checkpoints")[1]
    other = pretrain(tiny_config(few, tmp_path / "other", training__resume=str(middle), **options))
    assert np.array_equal(read_losses(other), read_losses(folder)[3:])  # from the last line that the checkpoint holds
    with pytest.raises(ConfigError, match="holds a run already"):
        pretrain(
            tiny_config(few, folder, training__resume=str(checkpoint.listing(other / "checkpoints")[-1]), **options)
        )


def test_a_gradient_that_is_not_finite_skips_the_step_though_the_loss_is_finite(few, tmp_path, monkeypatch):
    """sqrt(0) has an infinite slope, and 0 * infinity is NaN: the loss is as it was, every weight's gradient NaN."""
    seen, forward = [], IDMM.forward

    def spoiled(self, *args):
        seen.append(torch.cat([p.detach().flatten() for p in self.parameters()]))
        loss = forward(self, *args)
        return loss + 0 * sum(p.mul(0).sum() for p in self.parameters()).sqrt() if len(seen) == 2 else loss

    monkeypatch.setattr(IDMM, "forward", spoiled)
    folder = pretrain(tiny_config(few, tmp_path / "run", **SMALL, training__batch_size=3, training__epochs=2))
    lines = metrics(folder)
    assert [line["step"] for line in lines if "loss" not in line] == [1]
    assert lines[1]["nonfinite_steps"] == 1
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert all(torch.isfinite(v).all() for v in load_file(folder / "backbone.safetensors").values())


def test_fp16_stops_too_where_every_gradient_is_not_finite(few, tmp_path, monkeypatch):
    """The scaler once skipped such steps for ever, its scale at 0; on the CPU, whose fused AdamW knows scalers too."""
    forward = IDMM.forward
    monkeypatch.setattr(
        IDMM,
        "forward",
        lambda self, *args: forward(self, *args) + 0 * sum(p.mul(0).sum() for p in self.parameters()).sqrt(),
    )
    monkeypatch.setattr(Runtime, "scaler", lambda self: torch.amp.GradScaler("cpu", enabled=True))
    with pytest.raises(FloatingPointError, match=r"gradients of a finite loss .* 4 times in a row"):
        pretrain(
            tiny_config(
                few,
                tmp_path / "run",
                **SMALL,
                training__batch_size=1,
                training__epochs=2,
                training__max_nonfinite_steps=4,
            )
        )


def test_a_signal_in_the_last_evaluation_is_obeyed(few, tmp_path, monkeypatch):
    """It had been dropped: what follows the training (the next stage) began all the same."""
    stops = Stops(monkeypatch)

    class Stopping(_Probe):
        def __call__(self, backbone, runtime):
            stops.interrupt.signal = 15
            return super().__call__(backbone, runtime)

    options = {**SMALL, "training__batch_size": 6, "training__epochs": 2, "online_eval__every": 2}
    with pytest.raises(Interrupted):
        pretrain(tiny_config(few, tmp_path / "run", **options), Stopping())
    lines = metrics(tmp_path / "run")
    assert "knn20" in lines[-1]
    pretrain(tiny_config(few, tmp_path / "run", **options, training__resume="auto"), _Probe())
    assert metrics(tmp_path / "run") == lines
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def test_a_run_does_not_go_on_where_an_epoch_has_another_number_of_steps(kept, few, monkeypatch):
    """As with other processes, where the last batch is not enough for all: epochs would be counted anew."""
    options, folder = kept
    before = metrics(folder)
    steps = len(before) // options["training__epochs"]
    monkeypatch.setattr(MultiCropLoader, "__len__", lambda loader: steps - 1)
    with pytest.raises(ConfigError, match=rf"an epoch has {steps - 1} steps here, and had another number"):
        pretrain(tiny_config(few, folder, training__resume="auto", **options))
    assert metrics(folder) == before


def test_more_processes_than_an_epoch_has_images_for_are_refused(few, tmp_path, monkeypatch):
    monkeypatch.setattr(MultiCropLoader, "__len__", lambda loader: 0)
    for train, schema in ((pretrain, {}), (finetune, {"schema": FINETUNE})):
        with pytest.raises(ConfigError, match=r"\d+ images are too few for 1 processes: each needs one"):
            train(tiny_config(few, tmp_path / "run", **schema, **SMALL))
    assert not (tmp_path / "run").exists()


def test_weights_alone_are_no_training_to_resume(few, tmp_path):
    tuned = tiny_config(few, tmp_path / "run", FINETUNE, **SMALL, training__epochs=2, training__evaluate_every=1)
    finetune(tuned)
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    torch.save(torch.zeros(2), tmp_path / "other.pt")
    for path, folder in ((best, "run"), (best, "new"), (tmp_path / "other.pt", "new")):
        cfg = tiny_config(few, tmp_path / folder, FINETUNE, **SMALL, training__resume=str(path))
        with pytest.raises(ConfigError, match=r"holds weights alone, no training that could go on.* --init "):
            finetune(cfg)


def test_a_job_that_is_started_again_goes_on_from_its_newest_checkpoint_and_with_no_other_run(kept, few, monkeypatch):
    """By torchrun --max-restarts; it once went back to the checkpoint it names, or into a run refused before."""
    options, folder = kept
    older = checkpoint.listing(folder / "checkpoints")[0]
    monkeypatch.setattr(distributed, "restarted", lambda: True)
    pretrain(tiny_config(few, folder, training__resume=str(older), **options))
    assert not (folder / "checkpoints" / "aside_1").exists()
    starts = folder / "starts.jsonl"
    assert json.loads(starts.read_text().splitlines()[-1])["step"] == 8
    starts.write_text(re.sub(r'"started": "\d+', '"started": "2000', starts.read_text()))  # begun before this job
    with pytest.raises(ConfigError, match="holds a run already"):
        pretrain(tiny_config(few, folder, **options))


def test_what_fails_before_the_first_step_lets_go_of_the_run_folder(few, tmp_path, monkeypatch):
    cfg = tiny_config(
        few, tmp_path / "run", **SMALL, training__batch_size=6, training__epochs=1, training__resume="auto"
    )
    monkeypatch.setattr(task, "choose_attention", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError) as kept_alive:
        pretrain(cfg)
    monkeypatch.undo()
    assert len(metrics(pretrain(cfg))) == 2
    assert kept_alive.value is not None


def test_weights_that_are_not_finite_are_never_saved(kept, few, monkeypatch):
    """As by a fault in memory: the step looked right, the weights are not."""
    options, folder = kept
    for path in checkpoint.listing(folder / "checkpoints")[2:]:
        path.unlink()
    images_of, steps = loop.Throughput.step, []

    def break_one(meter, images):
        steps.append(images)
        if len(steps) == 2:
            for model in models:
                model.head.weight.data[0, 0] = float("nan")
        return images_of(meter, images)

    models, forward = [], IDMM.forward
    monkeypatch.setattr(IDMM, "forward", lambda self, *args: models.append(self) or forward(self, *args))
    monkeypatch.setattr(loop.Throughput, "step", break_one)
    with pytest.raises(FloatingPointError, match=r"head\.weight"):
        pretrain(tiny_config(few, folder, training__resume="auto", **options))
    assert [checkpoint.step_of(p) for p in checkpoint.listing(folder / "checkpoints")] == [2, 4]


def test_the_clock_makes_checkpoints_with_one_step_an_epoch_too(few, tmp_path, monkeypatch):
    folder = pretrain(
        tiny_config(
            few,
            tmp_path / "run",
            **SMALL,
            training__batch_size=12,
            training__epochs=4,
            training__checkpoint_every=100,
            training__checkpoint_minutes=1e-9,
            training__keep_checkpoints=10,
        )
    )
    assert [checkpoint.step_of(p) for p in checkpoint.listing(folder / "checkpoints")] == [1, 2, 3, 4]


def test_an_answer_that_comes_a_step_late_writes_one_checkpoint_not_two(few, tmp_path, monkeypatch):
    """With several processes the clock's question is answered a step later; here both are fakes, a clock of 3 steps."""
    now = itertools.count()

    class Late:
        delay = 1

        def __init__(self):
            self.asked = (0, 0)

        def all_reduce_max(self, *values):
            before, self.asked = self.asked, values
            return before

    class Clock:
        @staticmethod
        def monotonic():
            return next(now) * 60.0

    monkeypatch.setattr(loop.distributed, "Consensus", Late)
    monkeypatch.setattr(checkpoint, "time", Clock)
    folder = pretrain(
        tiny_config(
            few,
            tmp_path / "run",
            **SMALL,
            training__batch_size=1,
            training__epochs=2,
            training__checkpoint_every=100,
            training__checkpoint_minutes=3.5,
            training__keep_checkpoints=100,
        )
    )
    steps = [checkpoint.step_of(p) for p in checkpoint.listing(folder / "checkpoints")]
    assert len(steps) >= 4
    assert all(b - a > 1 for a, b in itertools.pairwise(steps[:-1]))  # the last one is that of the end


def _beton(path, images, labels=(0, 1, 2), classes=("a", "b", "c")):
    split = Split(images, [labels[k % len(labels)] for k in range(len(images))], list(classes))
    return write_beton(path, split, dataset="t", name="train", mode="raw", quiet=True).path


def test_a_run_does_not_go_on_with_other_images_labels_or_numbers_of_them(few, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(12)]  # those of `few`
    options = {**SMALL, "training__batch_size": 6, "training__epochs": 1}

    def tune(beton, **more):
        return finetune(tiny_config(beton, tmp_path / "run", FINETUNE, **options, training__resume="auto", **more))

    result = tune(few, data__per_class=3)
    with pytest.raises(ConfigError, match=r"started with data\.per_class=3, not 2"):
        tune(few, data__per_class=2)
    moved = _beton(tmp_path / "moved" / "renamed.beton", images)
    assert tune(moved, data__per_class=3) == result  # the same images elsewhere
    changed = [*images[:-1], 255 - images[-1]]
    for others in (
        _beton(tmp_path / "pixels.beton", changed),
        _beton(tmp_path / "labels.beton", images, (0, 1, 2, 2)),
        _beton(tmp_path / "more.beton", [*images, images[0]]),
    ):
        with pytest.raises(OtherInputs, match="started with other images or labels"):
            tune(others, data__per_class=3)


def test_a_fingerprint_is_of_images_and_labels_whoever_wrote_the_file(ffcv_betons, tmp_path, photos):
    """FFCV's own writer keeps no checksums: new pixels under an old name had been believed."""
    ours = _beton(tmp_path / "ours.beton", photos[:4])
    a, b, mine = (open_beton(p).fingerprint for p in (ffcv_betons / "a.beton", ffcv_betons / "b.beton", ours))
    assert len({a, b, mine}) == 3
    shutil.copy(ffcv_betons / "a.beton", tmp_path / "copy.beton")
    assert open_beton(tmp_path / "copy.beton").fingerprint == a


def test_a_run_folder_tells_each_start(kept, few):
    options, folder = kept
    pretrain(tiny_config(few, folder, training__resume="auto", **options))
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 8]
    assert starts[0]["command"][0] == sys.executable
    assert starts[0]["versions"]["torch"] == torch.__version__
    assert {"started", "commit", "changed", "host", "processes", "gpu"} <= set(starts[0])


def test_the_same_call_on_a_folder_that_changed_begins_a_new_run_and_says_so(tree, tmp_path, monkeypatch, capfd):
    """One image more was once a size mismatch of the head; one replaced was trained on as if it were the old one."""
    import idmm_fast

    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "cache"))
    images = shutil.copytree(tree, tmp_path / "images")
    model = {"name": "vit_tiny_patch16_224", "image_size": 16, "options": SMALL["model__options"]}

    def call():
        return idmm_fast.pretrain(images, tmp_path / "run", model, epochs=1, training={"amp": "fp32", "compile": False})

    call()
    first = metrics(tmp_path / "run")
    for k, change in enumerate(
        (
            lambda: shutil.copy(images / "class0" / "000.jpg", images / "class0" / "new.jpg"),
            lambda: shutil.copy(images / "class1" / "001.jpg", images / "class0" / "new.jpg"),
        ),
        1,
    ):
        change()
        capfd.readouterr()
        call()
        assert f"it is now {tmp_path / 'run'}_before_{k}, and a new run starts" in capfd.readouterr().out
        assert len(metrics(tmp_path / "run")) == 1
    assert metrics(tmp_path / "run_before_1") == first
    call()  # nothing changed: it goes on, having nothing to do
    assert not (tmp_path / "run_before_3").exists()


def test_what_a_probe_needs_is_looked_at_before_training(few, tmp_path):
    """It had been found after online_eval.every epochs, and without a checkpoint."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(3)]
    unlabelled = _beton(tmp_path / "unlabelled.beton", images, (-1,))
    other = _beton(tmp_path / "other.beton", images, classes=("x", "y", "z"))
    for test, error, says in (
        (tmp_path / "missing.beton", FileNotFoundError, "does not exist"),
        (unlabelled, BetonError, "label"),
        (other, (BetonError, ConfigError), "class"),
    ):
        cfg = tiny_config(few, tmp_path / "run", **SMALL, data__test=str(test), online_eval__every=2)
        with pytest.raises(error, match=says):
            pretrain(cfg, OnlineEvaluation(cfg))
        assert not (tmp_path / "run").exists()


def test_two_jobs_in_one_run_folder_do_not_mix(few, tmp_path, monkeypatch):
    """The second one is told who is there, whatever it was asked; when the first one has ended, it may go on."""
    cfg = tiny_config(
        few, tmp_path / "run", **SMALL, training__batch_size=6, training__epochs=1, training__resume="auto"
    )
    run = RunDir(tmp_path / "run", cfg, {"train": open_beton(few)})
    with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on "):
        pretrain(cfg)
    run.close()
    assert len(metrics(pretrain(cfg))) == 2
    assert not (tmp_path / "run" / ".lock").exists()
