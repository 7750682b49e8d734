"""SIGINT and SIGTERM: a checkpoint in mid epoch, and the run resumes."""

import json
import os
import signal
import time

import numpy as np
import pytest
from helpers import ForkedScript, read_losses, tiny_config, train_command

from idmm_fast.methods import IDMM
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.signals import Interrupted, SignalFlag


@pytest.fixture(scope="module")
def uninterrupted_losses(tiny_beton, tmp_path_factory):
    """The losses of the command's run, in a process of its own: in this one memory is laid out differently, and
    with it the last bit changes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = ForkedScript(*train_command(tiny_beton, folder)[1:])
    message = process.communicate()
    assert process.returncode == 0, message
    return read_losses(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_flag_takes_a_signal_once_says_so_and_hands_its_handler_back(number, capfd):
    before = signal.getsignal(number)
    with SignalFlag() as flag:
        assert flag.signal == 0
        os.kill(os.getpid(), number)
        assert flag.signal == number
        assert Interrupted(flag.signal, "run").exit_code == 128 + number
        if number == signal.SIGINT:  # a second Ctrl-C does not wait for the step's end
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err.count("stopping after this step") == 1  # which may compile, for a minute or two


def test_error_of_a_step_that_a_signal_came_in_is_no_error_of_its_own(tiny_beton, tmp_path, monkeypatch):
    """As torch's, when the signal has ended its compiler too. Without a signal it stays what it is."""
    number = 0

    def failing(self, *args):
        if number:
            os.kill(os.getpid(), number)
        raise RuntimeError("the compiler died")

    monkeypatch.setattr(IDMM, "forward", failing)
    with pytest.raises(RuntimeError, match="the compiler died"):
        pretrain(tiny_config(tiny_beton, tmp_path / "a"))
    number = signal.SIGTERM
    with pytest.raises(Interrupted, match=r"in mid-step.*newest checkpoint in") as stopped:
        pretrain(tiny_config(tiny_beton, tmp_path / "b"))
    assert stopped.value.exit_code == 128 + number
    assert str(stopped.value.__cause__) == "the compiler died"


@pytest.mark.integration
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_signal_writes_a_checkpoint_in_mid_epoch_and_the_run_resumes(
    tiny_beton, tmp_path, number, uninterrupted_losses
):
    """Stopped by a signal at some step; resumed, the curve is that of the run never stopped, bit for bit."""
    run = train_command(tiny_beton, tmp_path / "run")[1:]
    process = ForkedScript(*run)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.005)
    process.send_signal(number)
    message = process.communicate(timeout=60)
    assert process.returncode == 128 + number, message
    assert "checkpoint" in message
    assert "resume=auto" in message
    done = metrics.read_text().count("\n")
    assert 5 <= done < 128
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == done - 1
    process = ForkedScript(*run)
    message = process.communicate()
    assert process.returncode == 0, message
    assert np.array_equal(read_losses(tmp_path / "run"), uninterrupted_losses)
