"""torch.compile: every shape once, in the first epoch; kept on disk for the next run; the same curve as without."""

import numpy as np
import pytest
import torch
from helpers import FINETUNE, read_losses, tiny_config
from torch._dynamo.utils import counters

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
def test_pretraining_compiles_in_its_first_epoch_only(tiny_beton, tmp_path, strict):
    """64 images in steps of 24: the last partial batch is a shape of its own."""
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__batch_size=24, training__compile=True, training__epochs=3)
    assert np.isfinite(read_losses(pretrain(cfg))).all()
    assert strict[0] == 2  # graphs: a whole batch, a partial one
    assert strict[-1] == strict[0]


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
    assert len(strict) == 3
    assert strict[0] == 2
    assert strict[-1] == strict[0]
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
