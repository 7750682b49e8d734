"""Two jobs on one thing: the second one is told who holds it, or waits.

A process that dies leaves nothing that is in the way.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import run_script

from idmm_fast.api import convert
from idmm_fast.beton import write_beton
from idmm_fast.config import ConfigError
from idmm_fast.lock import Lock, Locked

HOLD = """
import sys, time
from idmm_fast.lock import Lock
with Lock(sys.argv[1], 'it'):
    print('held', flush=True)
    time.sleep(float(sys.argv[2]))
"""


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
    with (
        Lock(path, "the folder", wait=True),
        pytest.raises(Locked),
    ):  # the file that was waited on is gone: this is another, and held
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


def test_a_second_conversion_of_a_beton_is_refused(tmp_path, tree):
    args = ("write_datasets.py", "--ds", "folder", "--root", tree, "--out", tmp_path, "--name", "x")
    with Lock(tmp_path / "x_train.beton.lock", "x"):
        (tmp_path / "x_train.beton.tmp").write_bytes(b"what the first one has written so far")
        second = run_script(*args)
        assert second.returncode == 1
        assert f"error: {tmp_path}/x_train.beton is in use by process {os.getpid()}" in second.stderr
        assert (tmp_path / "x_train.beton.tmp").exists()
    assert run_script(*args).returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"x_train.beton", "x_train.json"}


def test_a_second_job_waits_for_the_cache_and_finds_it_done(tmp_path, tree, monkeypatch, capsys):
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path))
    second, made, seen = [], [], []

    def slow(path, *args, **kwargs):
        made.append(path)
        if not second:
            second.append(threading.Thread(target=lambda: seen.append(convert(tree))))
            second[0].start()
            time.sleep(0.3)
        return write_beton(path, *args, **kwargs)

    monkeypatch.setattr("idmm_fast.beton.write_beton", slow)
    first = convert(tree)
    second[0].join()
    assert seen == [first]
    assert made == [first["train"]]
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


def test_where_nothing_can_be_written_conversion_says_so(tmp_path, tree):
    (tmp_path / "file").touch()
    refused = run_script("write_datasets.py", "--ds", "folder", "--root", tree, "--out", tmp_path / "file")
    assert (refused.returncode, refused.stderr.splitlines()) == (
        1,
        [f"error: {tmp_path}/file can't be written: File exists"],
    )
