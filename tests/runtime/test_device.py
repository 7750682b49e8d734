"""What a run computes on: half precision that the hardware has, compilation where it can be."""

from types import SimpleNamespace

import pytest
import torch
from helpers import read_losses, tiny_config

from idmm_fast.runtime import device
from idmm_fast.runtime.device import Runtime, resolve_runtime
from idmm_fast.train.pretraining import pretrain


def gpu(monkeypatch, major, minor=0):
    """A CUDA device of this compute capability, as far as torch is asked for it; bf16 can be emulated on any."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (major, minor))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda index: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")


def training(**values):
    return SimpleNamespace(**{"device": "cuda", "amp": "auto", "channels_last": "auto", "compile": "auto"} | values)


@pytest.mark.parametrize(("major", "amp"), [(6, torch.float16), (7, torch.float16), (8, torch.bfloat16)])
def test_a_gpu_that_only_emulates_bf16_takes_fp16(monkeypatch, major, amp):
    """Volta and Turing (7) compute bf16 in software; Ampere (8) was the first to have it."""
    gpu(monkeypatch, major)
    assert torch.cuda.is_bf16_supported()
    assert resolve_runtime(training(), 0).amp == amp
    assert resolve_runtime(training(amp="bf16"), 0).amp == torch.bfloat16  # who asks for it gets it


@pytest.mark.parametrize("choice", ["auto", True])
@pytest.mark.parametrize(
    ("capability", "tools", "says"),
    [
        ((6, 1), {"gcc"}, "Triton needs a GPU of compute capability 7.0, and this one has 6.1"),
        ((8, 0), set(), "there is no compiler (gcc or clang)"),
        ((7, 0), {"clang"}, ""),
    ],
)
def test_a_gpu_that_cannot_compile_runs_eagerly_and_says_why(monkeypatch, choice, capability, tools, says):
    gpu(monkeypatch, *capability)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: name)
    runtime = resolve_runtime(training(compile=choice), 10**6)
    assert runtime.compile == (not says)
    assert says in runtime.why_eager
    assert (says == "") == (runtime.why_eager == "")
    short = resolve_runtime(training(), 10)  # it would not be compiled anyway
    assert (short.compile, short.why_eager) == (False, "")


def test_a_cpu_without_a_compiler_trains_eagerly_and_says_so(
    tiny_beton, tmp_path, monkeypatch, without_pictures, capfd
):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    values = {"training__compile": True, "training__epochs": 1}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", **values))
    assert len(read_losses(folder)) == 4
    said = "".join(capfd.readouterr())
    assert "fp32, channels-last, not compiled, since there is no compiler (g++); on Debian" in said


def test_the_compiler_that_the_environment_names_is_looked_for(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name == "mine" else None)
    monkeypatch.setenv("CXX", "mine")
    assert device._why_eager(torch.device("cpu")) == ""
    monkeypatch.setenv("CXX", "theirs")
    assert "there is no compiler (theirs)" in device._why_eager(torch.device("cpu"))
    assert "not compiled" not in str(Runtime(torch.device("cpu"), None, False, False))
