"""Two jobs on one thing: the second one is told who holds it, or waits; a process that dies leaves nothing that is in the way."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from idmm_fast.config import ConfigError
from idmm_fast.lock import Lock, Locked

HOLD = "import sys, time\nfrom idmm_fast.lock import Lock\nwith Lock(sys.argv[1], 'it'):\n print('held', flush=True)\n time.sleep(float(sys.argv[2]))"


def hold(path, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_one_is_told_who_holds_it_until_that_one_is_killed(tmp_path):
    path = tmp_path / ".lock"
    other = hold(path, 60)
    with pytest.raises(Locked, match=f"run folder X is in use by process {other.pid} on {socket.gethostname()}"):
        Lock(path, "run folder X")
    assert issubclass(Locked, ConfigError)  # which every script reports as a sentence
    other.send_signal(signal.SIGKILL)
    other.wait()
    with Lock(path, "run folder X"):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not path.exists()


def test_waiting_ends_with_the_one_that_is_waited_for(tmp_path, capsys):
    path = tmp_path / ".lock"
    other = hold(path, 0.5)
    began = time.monotonic()
    with Lock(path, "the folder", wait=True), pytest.raises(Locked):  # the file that was waited on is gone: this is another, and held
        Lock(path, "the folder")
    assert 0.1 < time.monotonic() - began < 10
    assert f"the folder is in use by process {other.pid}" in capsys.readouterr().err
    assert other.wait() == 0


def test_where_the_file_system_has_no_locks_there_is_none(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with Lock(tmp_path / ".lock", "it"), Lock(tmp_path / ".lock", "it"):
        pass
