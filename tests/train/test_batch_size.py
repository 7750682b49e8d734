"""What fits into memory: measured against the system's own figures, and said where it does not fit."""

import ctypes
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from helpers import FINETUNE, read_losses, tiny_config, train_command

from idmm_fast.config import ConfigError, as_dict
from idmm_fast.methods import IDMM
from idmm_fast.models import create_backbone
from idmm_fast.runtime import distributed
from idmm_fast.runtime.device import Runtime
from idmm_fast.train import batch_size as memory
from idmm_fast.train.batch_size import fix_batch_size
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import SCHEMA, _step_cost, pretrain
from idmm_fast.train.provenance import record_start

OPTIONS = {"embed_dim": 192, "depth": 4, "num_heads": 3}


def limited(beton, folder, gigabytes, *args):
    """A pretraining of 64 images a step, six crops of 224 x 224, under `ulimit -v`: about 5 GB and the libraries."""
    run = [
        *train_command(beton, folder),
        f"--model.options={OPTIONS}",
        "--model.image_size=224",
        "--training.epochs=1",
        "--training.max_steps=1",
        *args,
    ]
    return subprocess.run(
        ["bash", "-c", f"ulimit -v {gigabytes << 20}; exec {shlex.join(run)}"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_measuring_a_step_leaves_the_training_as_it_is():
    """Drop path draws random numbers for each image; batch normalisation keeps statistics of them."""
    model, before = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2)), torch.random.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    drawing = lambda images: model(torch.rand(images, 4)).sum()  # noqa: E731
    assert memory.max_batch_size(model, Runtime(torch.device("cpu"), None, True, False), drawing, 12) == 256
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.integration
def test_a_step_keeps_what_it_is_said_to_keep(tiny_beton, tmp_path):
    """The process's peak grows by that much from 10 to 40 images, within a third: backward needs some for a moment."""
    cfg = tiny_config(tiny_beton, tmp_path, model__options=OPTIONS, model__image_size=112)
    runtime = Runtime(torch.device("cpu"), None, True, False)
    model = runtime.to_device(IDMM(create_backbone("vit_tiny_patch16_224", 112, options=OPTIONS), 64)).train()
    forward, _ = _step_cost(model, cfg, runtime)
    said = memory.bytes_of_a_step(forward, 10) - memory.bytes_of_a_step(forward, 2)

    def peak(images):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed would be used first and not be seen
        Path("/proc/self/clear_refs").write_text("5")
        forward(images).backward()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) << 10

    peak(10)
    grown = peak(40) - peak(10)
    assert grown / 30 == pytest.approx(said / 8, rel=1 / 3)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.integration
def test_auto_takes_what_fits_and_keeps_it_on_resume(tiny_beton, tmp_path, monkeypatch, capfd):
    """With all memory the recipe's 256, with little less; a run resumes with what it began with, whatever is free."""
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "all", training__batch_size="auto", training__epochs=1))
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["batch_size"] == 256
    values = {"training__batch_size": "auto", "training__epochs": 2, "training__resume": "auto"}
    few = {}
    for megabytes in (4, 8):
        monkeypatch.setattr(memory, "free_bytes", lambda device, m=megabytes: m << 20)
        folder = pretrain(tiny_config(tiny_beton, tmp_path / f"{megabytes}", **values, cutmix__chunk_size=2))
        few[megabytes] = yaml.safe_load((folder / "config.yaml").read_text())["training"]["batch_size"]
        assert len(read_losses(folder)) == 2 * -(-64 // few[megabytes])
    assert 2 <= few[4] < few[8] < 64
    assert few[4] % 2 == few[8] % 2 == 0
    assert few[8] == pytest.approx(2 * few[4], rel=0.5)
    pretrain(
        tiny_config(tiny_beton, tmp_path / "4", **values, cutmix__chunk_size=2)
    )  # finished with another batch size than would fit now
    assert f"training.batch_size=auto: {few[4]}" in "".join(capfd.readouterr())
    finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__batch_size="auto", training__epochs=1))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="not even the 32 images"):
        pretrain(tiny_config(tiny_beton, tmp_path / "none", training__batch_size="auto", cutmix__chunk_size=32))
    with pytest.raises(ConfigError, match=r"at most 256 images, which 1 processes with cutmix\.chunk_size 300 can't"):
        pretrain(tiny_config(tiny_beton, tmp_path / "none", training__batch_size="auto", cutmix__chunk_size=300))


def test_auto_asks_the_run_folder_itself_and_no_other(tmp_path, monkeypatch):
    """Not a run that the new one's folder lies in; but the run that a checkpoint named by its path belongs to."""

    def size(**values):
        cfg = tiny_config("x.beton", tmp_path / "old" / "stages" / "new", training__batch_size="auto", **values)
        return fix_batch_size(SCHEMA, cfg, lambda: ()).training.batch_size

    monkeypatch.setattr(memory, "max_batch_size", lambda *_: 24)
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)

    def started(images):
        return yaml.safe_dump(as_dict(tiny_config("x.beton", "r", training__batch_size=images)))

    (tmp_path / "old" / "config.yaml").write_text(started(8))
    assert size(training__resume="auto") == 24
    assert size(training__resume="no") == 24
    assert size(training__resume=str(tmp_path / "old" / "checkpoints" / "epoch_00000_step_00000004.pt")) == 8
    (tmp_path / "old" / "stages" / "new").mkdir(parents=True)
    (tmp_path / "old" / "stages" / "new" / "config.yaml").write_text(started(12))
    assert size(training__resume="auto") == 12
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun restarts the job
    assert size(training__resume="no") == 24  # the run there is not of this job, and is not resumed
    record_start(tmp_path / "old" / "stages" / "new" / "starts.jsonl", 0)
    assert size(training__resume="no") == 12
    (tmp_path / "old" / "stages" / "new" / "config.yaml").write_text("training: {epochs: 8}")  # of the user
    assert size(training__resume="auto") == 24


@pytest.mark.slow
def test_no_memory_is_a_sentence_with_a_number_that_fits(tiny_beton, tmp_path):
    shown = limited(tiny_beton, tmp_path / "a", 8, "--training.batch_size=64")
    assert shown.returncode == 1, shown.stderr
    assert "error: out of memory with training.batch_size 64" in shown.stderr
    assert "Traceback" not in shown.stderr
    number = int(shown.stderr.split("--training.batch_size=")[1].split()[0])
    assert 1 <= number <= 32
    for size in (number, "auto"):
        again = limited(tiny_beton, tmp_path / f"{size}", 8, f"--training.batch_size={size}")
        assert again.returncode == 0, again.stderr
    assert distributed.world() == 1
