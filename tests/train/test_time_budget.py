"""training.minutes: the steps that fit, whatever a step takes; the schedule ends with the time."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import FINETUNE, read_losses, remove_later_checkpoints, tiny_config

from idmm_fast.config import ConfigError
from idmm_fast.train import throughput, time_budget, trainer
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.time_budget import UNKNOWN, TimeBudget

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock.now, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def run(budget, clock, step_seconds, evaluation=None, step=0):
    """Steps until the budget's number is reached, with an evaluation of (seconds) every (steps); gives that number."""
    every, seconds = evaluation or (UNKNOWN, 0.0)
    budget.start(step)
    while step < budget.steps:
        clock.now += step_seconds(step)
        step += 1
        if budget.is_due(step):
            budget.plan(step, budget.estimate(step)[0])
        if step % every == 0 or (evaluation and step == budget.steps):
            since = budget.used()
            clock.now += seconds
            budget.add_aside("evaluation", since)
    return step


RATES = {
    "steady": lambda step: 0.1,
    "compiled": lambda step: 30.0 if step == 0 else 0.1,
    "noisy": lambda step: 0.05 + 0.1 * ((step * 7919) % 101) / 100,
    "slower": lambda step: 0.1 if step < 3000 else 0.2,
    "faster": lambda step: 0.2 if step < 1000 else 0.1,
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("evaluation", [None, (400, 10.0)])
def test_training_takes_the_minutes_it_was_given(clock, rate, evaluation):
    steps = run(TimeBudget(10), clock, RATES[rate], evaluation)
    assert clock.now == pytest.approx(600, rel=0.02)
    assert steps > 1000


def test_the_last_evaluation_is_left_time_for_though_none_was_timed(clock):
    """It takes what 300 steps take."""
    run(TimeBudget(10, evaluation_steps=300), clock, RATES["steady"])
    assert clock.now == pytest.approx(570, rel=0.01)


@pytest.mark.parametrize("seconds", [0.1, 4.0])  # of the first steps after the stop: a cold disk
def test_time_in_which_a_run_was_stopped_does_not_count(clock, seconds):
    first = TimeBudget(10)
    first.start(0)
    for step in range(1, 3001):
        clock.now += 0.1
        if first.is_due(step):
            first.plan(step, first.estimate(step)[0])
    state = first.state_dict()
    clock.now += 5000
    second = TimeBudget(10)
    second.load_state_dict(state)
    began = clock.now
    run(second, clock, lambda step: seconds if step < 3004 else 0.1, step=3000)
    assert clock.now - began == pytest.approx(300, rel=0.02)


def test_an_evaluation_before_the_first_step_is_no_part_of_the_steps(clock):
    """As after a stop in it. It had been taken for a part of the few steps timed so far: next to none seemed to fit."""
    budget, step, planned = TimeBudget(10), 3000, []
    budget.load_state_dict({"used": 300.0, "steps": 6000, "lasted": {"evaluation": 30.0}})
    budget.start(step)
    clock.now += 30.0
    budget.add_aside("evaluation", 300.0)
    budget.restart(step)
    while step < budget.steps:
        clock.now += 0.1
        step += 1
        if budget.is_due(step):
            budget.plan(step, budget.estimate(step)[0])
            planned.append(budget.steps)
    assert step == pytest.approx(5400, rel=0.01)  # 300 s and two evaluations are not for steps
    assert min(planned) > 0.98 * step
    assert budget.used() == pytest.approx(570, rel=0.01)


@pytest.fixture
def seconds(clock, monkeypatch):
    """The clock, which every step of the trainer moves by a second."""
    original = throughput.Throughput.step

    def step(meter, images):
        clock.now += 1.0
        return original(meter, images)

    monkeypatch.setattr(trainer.Throughput, "step", step)
    return clock


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_in_mid_epoch_at_a_learning_rate_near_0_and_says_so(tiny_beton, tmp_path, seconds, capsys):
    """54 s at a step a second: 13 epochs of 4 steps, and half a one."""
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__minutes=0.9, training__epochs=2))
    shown = capsys.readouterr()
    assert "0.9 minutes (whatever training.epochs says), epochs of 4 steps" in shown.out + shown.err
    assert "minutes=0.9: about 13.5 epochs fit (54 steps of 1 s)\n" in shown.out + shown.err
    rates = [line["lr"] for line in lines_of(folder)]
    assert len(rates) == 54
    assert rates[-1] < 0.01 * max(rates) < max(rates) == pytest.approx(2e-3, rel=0.1)
    assert np.isfinite(read_losses(folder)).all()
    assert (folder / "backbone.safetensors").exists()


def test_minutes_in_which_little_fits_are_told(tiny_beton, tmp_path, seconds, capsys):
    pretrain(tiny_config(tiny_beton, tmp_path / "run", training__minutes=0.5))
    shown = capsys.readouterr()
    assert "about 7.5 epochs fit (30 steps of 1 s); so few teach little" in shown.out + shown.err


def test_fine_tuning_ends_with_an_evaluation_and_resumes_within_its_minutes(tiny_beton, tmp_path, seconds):
    values = {"training__minutes": 0.5, "training__resume": "auto", "training__keep_checkpoints": 100}
    values["training__ema"] = 0.9
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values)
    finetune(cfg)
    count = len(lines_of(tmp_path / "f"))
    assert 27 <= count <= 30  # the evaluation of 64 images is thought to take as long as 64 / 16 / 3 steps
    assert [k for k, line in enumerate(lines_of(tmp_path / "f")) if "top1" in line] == [count - 1]
    remove_later_checkpoints(tmp_path / "f", 3)
    finetune(cfg)
    assert abs(len(lines_of(tmp_path / "f")) - count) <= 2
    assert "top1" in lines_of(tmp_path / "f")[-1]
    with pytest.raises(ConfigError, match=r"training\.minutes=0\.5, not 0\.6"):
        finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **(values | {"training__minutes": 0.6})))


@pytest.mark.slow
def test_a_minute_is_a_minute(tiny_beton, tmp_path):
    """Within 5 %, on a machine that does nothing else."""
    began = time.monotonic()
    pretrain(tiny_config(tiny_beton, tmp_path / "run", training__minutes=1.0, training__batch_size=64))
    assert time.monotonic() - began == pytest.approx(60, rel=0.05)
