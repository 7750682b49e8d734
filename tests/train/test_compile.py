"""torch.compile: whole batches, in the first epoch; kept on disk for the next run; the same curve as without."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import FINETUNE, read_losses, tiny_config
from torch._dynamo.utils import counters

from idmm_fast.runtime.device import resolve_runtime
from idmm_fast.train import throughput
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import pretrain

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def strict(monkeypatch, tmp_path):
    """After a run's first epoch torch refuses to compile. Yields the number of graphs at the end of each epoch."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    graphs, end_epoch = [], throughput.Throughput.end_epoch

    def count(meter):
        graphs.append(counters["stats"]["unique_graphs"])
        torch.compiler.set_stance("fail_on_recompile")
        end_epoch(meter)

    monkeypatch.setattr(throughput.Throughput, "end_epoch", count)
    yield graphs
    torch.compiler.set_stance("default")


@pytest.mark.slow
def test_pretraining_compiles_whole_batches_in_its_first_epoch_only(tiny_beton, tmp_path, strict, capsys):
    """64 images in steps of 24: the last partial batch is a shape of its own, which stays as it is."""
    values = {"training__batch_size": 24, "training__epochs": 3, "model__drop_path": 0.0}
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__compile=True, **values)
    curve = read_losses(pretrain(cfg))
    assert "compiled in the first step (not an epoch's last batch, which is smaller)" in capsys.readouterr().out
    assert strict == [1, 1, 1]  # graphs at the end of each epoch
    torch.compiler.set_stance("default")
    plain = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "plain", **values)))
    assert np.abs(curve / plain - 1).max() < 1e-3


@pytest.mark.slow
def test_an_only_batch_is_compiled_though_it_is_smaller(tiny_beton, tmp_path, strict):
    values = {"training__batch_size": 100, "training__compile": True, "training__epochs": 2}
    pretrain(tiny_config(tiny_beton, tmp_path / "run", **values))
    assert strict == [1, 1]


def test_the_cache_folder_is_set_before_anything_compiles(monkeypatch, tmp_path):
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")  # set again as it was when the test ends
    training = {"device": "cpu", "amp": "fp32", "channels_last": False}
    assert not resolve_runtime(SimpleNamespace(**training, compile=False), 10**6).compile
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert resolve_runtime(SimpleNamespace(**training, compile=True), 1).compile
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


@pytest.mark.slow
def test_fine_tuning_compiles_in_its_first_epoch_only(tiny_beton, tmp_path, strict):
    """Mixup and CutMix in turn, and an evaluation after each epoch."""
    values = {
        "training__batch_size": 24,
        "training__compile": True,
        "training__epochs": 3,
        "training__evaluate_every": 1,
    }
    finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    assert strict == [1, 1, 1]
    with pytest.raises(RuntimeError, match="recompile"):  # so that the test can tell
        torch.compile(torch.nn.Linear(2, 2), dynamic=False)(torch.zeros(1, 2))


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_run(tiny_beton, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    for name, wanted in (("first", "fxgraph_cache_miss"), ("second", "fxgraph_cache_hit")):
        torch._dynamo.reset()
        counters.clear()
        pretrain(tiny_config(tiny_beton, tmp_path / name, training__compile=True, training__epochs=1))
        assert counters["inductor"][wanted] > 0
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    assert np.array_equal(read_losses(tmp_path / "first"), read_losses(tmp_path / "second"))
