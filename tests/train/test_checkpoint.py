"""Checkpoints: what they hold, damage, kills, a full disk; a resumed run equals the uninterrupted one."""

import os
import subprocess
import time

import numpy as np
import pytest
import torch
from helpers import read_losses, remove_later_checkpoints, tiny_config, train_command

from idmm_fast.config import ConfigError
from idmm_fast.train import checkpoint
from idmm_fast.train.pretraining import pretrain

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.integration]


def test_checkpoints_load_without_unpickling(pretrained_run):
    state = torch.load(checkpoint.listing(pretrained_run / "checkpoints")[-1], weights_only=True)
    assert {"model", "optimizer", "step", "config"} <= set(state)


@pytest.mark.parametrize("options", [{}, {"model__drop_path": 0.3}], ids=["plain", "drop-path"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tiny_beton, tmp_path, options):
    """CPU, fp32, one thread layout: the same kernels on the same numbers in the same order, so bit for bit."""
    options = options | {"training__keep_checkpoints": 100}
    whole = pretrain(tiny_config(tiny_beton, tmp_path / "whole", **options))
    for epoch in (1, 2, 3):
        other = tiny_config(tiny_beton, tmp_path / "other", training__resume="auto", **options)
        folder = pretrain(other)
        remove_later_checkpoints(folder, epoch)
        (folder / "backbone.safetensors").unlink()
        again = pretrain(other)
        assert np.array_equal(read_losses(again), read_losses(whole))
        assert (again / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()


def test_timed_checkpoints_in_mid_epoch_resume_bit_for_bit(tiny_beton, tmp_path):
    whole = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "whole", training__batch_size=8)))
    cfg = tiny_config(
        tiny_beton,
        tmp_path / "run",
        training__batch_size=8,
        training__checkpoint_minutes=1e-9,
        training__resume="auto",
        training__keep_checkpoints=100,
    )
    folder = pretrain(cfg)
    steps = [int(p.stem.rsplit("_", 1)[1]) for p in checkpoint.listing(folder / "checkpoints")]
    assert steps == list(range(1, 33))
    for path in checkpoint.listing(folder / "checkpoints")[13:]:
        path.unlink()
    pretrain(cfg)
    assert np.array_equal(read_losses(folder), whole)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny_beton, tmp_path):
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__resume="auto")
    folder = pretrain(cfg)
    wanted = read_losses(folder)
    newest = checkpoint.listing(folder / "checkpoints")[-1]
    content = newest.read_bytes()
    at = len(content) // 2
    for damaged in (content[:1000], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], b""):
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged"):
            pretrain(cfg)
        assert np.array_equal(read_losses(folder), wanted)


def test_run_folder_is_neither_overwritten_nor_resumed_with_other_options(tiny_beton, tmp_path):
    pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=1))
    with pytest.raises(ConfigError, match=r"holds a run already.* --out DIR"):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=1))
    with pytest.raises(ConfigError, match=r"started with training\.lr"):
        pretrain(
            tiny_config(tiny_beton, tmp_path / "run", training__epochs=1, training__lr=0.5, training__resume="auto")
        )


def test_full_disk_is_an_error_message_and_loses_no_checkpoint(tiny_beton, tmp_path, monkeypatch):
    """From the third checkpoint on. The two before stay intact, nothing half-written is left, and the run resumes."""
    whole = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "whole")))
    synced, fsync = [], os.fsync

    def full(number):
        if os.readlink(f"/proc/self/fd/{number}").endswith(".pt.tmp"):
            synced.append(number)
        if len(synced) > 2:
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__resume="auto")
    with pytest.raises(OSError, match=r"could not be written: .*No space left.*make room"):
        pretrain(cfg)
    kept = checkpoint.listing(tmp_path / "run" / "checkpoints")
    assert len(kept) == 2
    assert all(checkpoint.load(path) for path in kept)
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(os, "fsync", fsync)
    assert np.array_equal(read_losses(pretrain(cfg)), whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_killed_twenty_times_equals_the_uninterrupted_one(tiny_beton, tmp_path):
    """kill -9 at random moments, a checkpoint every few steps: the same curve and weights, bit for bit."""
    rng = np.random.default_rng(0)
    shape = [
        "--training.epochs=40",
        "--training.checkpoint_minutes=1e-6",
        "--training.keep_checkpoints=3",
        "--model.drop_path=0.1",
    ]
    subprocess.run(
        [*train_command(tiny_beton, tmp_path / "whole"), *shape], check=True, capture_output=True, timeout=280
    )
    run, kills = [*train_command(tiny_beton, tmp_path / "run"), *shape], 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    while kills < 20:
        before = metrics.read_text().count("\n") if metrics.exists() else 0
        process = subprocess.Popen(run, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.25))
        assert process.poll() is None, "the run was over before it was killed 20 times"
        process.kill()
        process.wait()
        kills += 1
    subprocess.run(run, check=True, capture_output=True, timeout=280)
    assert np.array_equal(read_losses(tmp_path / "run"), read_losses(tmp_path / "whole"))
    assert (tmp_path / "run" / "backbone.safetensors").read_bytes() == (
        tmp_path / "whole" / "backbone.safetensors"
    ).read_bytes()
    assert not list((tmp_path / "run").rglob("*.tmp"))
