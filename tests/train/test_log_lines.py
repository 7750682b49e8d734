"""What a log gets where there is no terminal: a line an epoch, neither none for days nor thousands."""

import io
import re
import sys

import pytest
from helpers import FINETUNE, tiny_config

from idmm_fast.loader import MultiCropLoader, Views
from idmm_fast.runtime import distributed
from idmm_fast.train import log_lines, throughput
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.log_lines import LogLines
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.throughput import Throughput

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(log_lines.time, "perf_counter", lambda: Clock.now)
    return Clock


def run(lines, clock, epochs, seconds, steps=4, ahead=True):
    """Epochs of `steps` steps of 100 images; the loss of a step is its epoch, and arrives after the next one."""
    waiting = None
    for epoch in range(epochs):
        for _ in range(steps):
            clock.now += seconds / steps
            lines.step(100)
            if waiting is not None:
                lines.log(waiting, float(waiting), 1e-3)
            waiting = epoch
        last = epoch == epochs - 1
        if last:  # a checkpoint waits for it
            lines.log(waiting, float(waiting), 1e-3)
        lines.end_epoch(epoch, last, last, {"top1": 10.0 * epoch} if last else {})


def test_a_line_tells_epoch_loss_rate_speed_time_left_and_accuracy(clock, capsys):
    run(LogLines("fine-tune", 400, 4, 0), clock, 4, 20.0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    # The loss of the epoch's last step comes with the next step, 5 s and 100 images later: 25 s for 500 images.
    assert said[0] == "fine-tune: epoch 1 of 4, loss 0, lr 1.0e-03, 20.0 images/s, 0:00:55 left"
    assert said[1] == "fine-tune: epoch 2 of 4, loss 1, lr 1.0e-03, 20.0 images/s, 0:00:35 left"
    assert said[3] == "fine-tune: epoch 4 of 4, loss 3, lr 1.0e-03, 20.0 images/s, 0:00:00 left, top-1 30.00 %"


def test_the_speed_of_an_epoch_of_one_step_is_its_own(clock, capsys):
    """The loss comes with the step of the next epoch, whose images belong to that one's line."""
    run(LogLines("fine-tune", 100, 2, 0), clock, 2, 20.0, steps=1)
    assert re.findall(r"([\d.]+) images/s", capsys.readouterr().err) == ["5.0", "5.0"]


def test_short_epochs_share_a_line_and_the_first_and_last_have_one(clock, capsys):
    """800 epochs of 2 s: a line each 10 s, with the mean loss of the epochs since the line before."""
    run(LogLines("pretrain", 400, 800, 0), clock, 800, 2.0)
    said = capsys.readouterr().err.splitlines()
    assert 130 <= len(said) <= 162
    assert said[0].startswith("pretrain: epoch 1 of 800, loss 0,")
    assert said[1].startswith("pretrain: epoch 7 of 800, loss 3.5,")  # the first whose end is 10 s later: 1 .. 6
    assert said[-1].startswith("pretrain: epoch 800 of 800, ")
    assert "200 images/s" in said[5]


def test_a_long_epoch_has_a_line_a_minute(clock, capsys):
    run(LogLines("pretrain", 60_000, 2, 0), clock, 2, 600.0, steps=600)
    said = capsys.readouterr().err.splitlines()
    assert 18 <= len(said) <= 22
    assert said[0].startswith("pretrain: epoch 1 of 2 (10%), loss 0,")
    assert "epoch 1 of 2, loss 0" in "\n".join(said)
    assert said[0].endswith(" left")


def test_a_resumed_run_counts_time_from_its_start_and_an_unknown_length_has_none_left(clock, capsys):
    lines = LogLines("pretrain", 400, 10, 3600, 0)  # the last epoch alone
    clock.now += 10
    lines.step(200)
    lines.log(9, 1.0, 1e-3)
    lines.end_epoch(9, True, True, {})  # in mid-epoch, as training.max_steps ends
    lines = LogLines("pretrain", 400, None, 0)
    clock.now += 10
    lines.step(400)
    lines.log(0, float("nan"), 1e-3)
    lines.end_epoch(0, True, True, {})
    assert capsys.readouterr().err.splitlines() == [
        "pretrain: epoch 10 of 10 (50%), loss 1, lr 1.0e-03, 20.0 images/s, 0:00:10 left",
        "pretrain: epoch 1, loss nan, lr 1.0e-03, 40.0 images/s",
    ]


def test_with_minutes_the_time_left_is_that_until_their_end(tiny_beton, tmp_path, monkeypatch, capsys):
    """Not what the mean speed says, which has the compiling of the first step in it."""
    monkeypatch.setattr(log_lines, "LEAST_SECONDS", 0.0)
    loader = MultiCropLoader(tiny_beton, 8, num_workers=1, views=[Views(2, 16)])
    now = 50.0
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    meter = Throughput(loader, loader.indices.size, 0, "pretrain")
    meter.set_total(None, 60.0)
    for epoch, now in enumerate((90.0, 100.0)):
        meter.step(loader.indices.size)
        meter.show(epoch, 1.0, 1e-3, 0)
        meter.show_epoch(epoch, False, True, {})
        meter.set_total(3 * loader.indices.size, 110.0 - now)
    meter.close()
    assert re.findall(r"epoch [^,]+|\d:\d\d:\d\d left", capsys.readouterr().err) == [
        *("epoch 1", "0:00:20 left"),
        *("epoch 2 of 3", "0:00:10 left"),
    ]


def test_an_evaluation_of_minutes_comes_before_the_line_of_its_epoch(clock, capsys):
    """The loss of the last step arrives after it; the speed is that of the training."""
    lines = LogLines("fine-tune", 400, 2, 0)
    clock.now += 10
    lines.step(400)
    clock.now += 90
    lines.log(0, 2.0, 1e-3)
    lines.end_epoch(0, False, True, {"top1": 50.0})
    clock.now += 5  # in the next epoch, from its start
    lines.step(100)
    lines.end_epoch(1, True, True, {})
    assert capsys.readouterr().err.splitlines() == [
        "fine-tune: epoch 1 of 2, loss 2, lr 1.0e-03, 40.0 images/s, 0:01:40 left, top-1 50.00 %",
        "fine-tune: epoch 2 of 2 (25%), loss nan, lr 1.0e-03, 20.0 images/s, 0:01:03 left",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "rank", "has_lines"), [(io.StringIO, 0, 1), (Terminal, 0, 0), (io.StringIO, 1, 0)])
def test_lines_are_for_process_0_without_a_terminal(raw_beton, monkeypatch, stream, rank, has_lines):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    meter = Throughput(MultiCropLoader(raw_beton, 8, num_workers=1, views=[Views(2, 16)]), 40, 0, "train")
    meter.step(40)
    meter.show(0, 1.0, 1e-3, 0)
    meter.show_epoch(0, True, True, {})
    meter.close()
    assert sys.stderr.getvalue().count("epoch 1 of 1, loss 1") == has_lines


def test_a_training_without_a_terminal_says_how_it_goes(tiny_beton, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log_lines, "LEAST_SECONDS", 0.0)
    line = r": epoch (\d) of 3, loss [\d.]+, lr \d\.\de-\d\d, [\d,.]+ images/s, 0:00:\d\d left"
    pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=3, training__checkpoint_every=2))
    said = capsys.readouterr().err
    assert re.findall("^pretrain" + line + "$", said, re.M) == ["1", "2", "3"]
    values = {"training__epochs": 3, "training__evaluate_every": 2, "training__ema": 0.5}
    result = finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    said = capsys.readouterr().err
    assert re.findall("^fine-tune" + line, said, re.M) == ["1", "2", "3"]
    accuracies = re.findall(r"epoch (\d) .* top-1 ([\d.]+) %$", said, re.M)
    assert [epoch for epoch, _ in accuracies] == ["2", "3"]
    assert accuracies[1][1] == f"{result['top1']:.2f}"
