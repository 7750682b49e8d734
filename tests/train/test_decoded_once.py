"""data.cache in trainings: the same numbers, said in the first lines, and test images decoded once too."""

import json
import shutil

import numpy as np
import pytest
from helpers import read_losses, tiny_config

from idmm_fast.config.finetune import SCHEMA as FINETUNE
from idmm_fast.evaluate.online import OnlineEvaluation
from idmm_fast.loader.cache import READY
from idmm_fast.runtime.device import resolve_runtime
from idmm_fast.train import finetuning, pretraining


@pytest.mark.integration
def test_pretraining_with_and_without_a_cache_has_the_same_curve_and_evaluations(jpg_beton, tmp_path, capfd):
    found = {}
    for mode in ("auto", "none"):
        folder = tmp_path / mode
        keys = {"data__cache": mode, "data__test": str(jpg_beton), "online_eval__every": 2}
        cfg = tiny_config(jpg_beton, folder, training__epochs=3, **keys)
        online = OnlineEvaluation(cfg)
        pretraining.pretrain(cfg, online)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        found[mode] = read_losses(folder).tolist(), [line["knn10"] for line in lines if "knn10" in line]
        said = capfd.readouterr()
        assert ("JPEGs are decoded once, into 3.58 MB of memory" in said.out + said.err) == (mode == "auto")
        assert [(cache.state == READY).all() for cache in online.caches] == [mode == "auto"] * 2
    assert found["auto"] == found["none"]
    assert len(found["auto"][1]) == 2


@pytest.mark.integration
def test_finetuning_with_and_without_a_cache_has_the_same_curve_and_accuracies(jpg_beton, tmp_path):
    path, found = shutil.copy(jpg_beton, tmp_path / "own.beton"), {}
    for mode in ("memory", "none"):
        keys = {"data__cache": mode, "data__per_class": 5, "training__evaluate_every": 1}
        cfg = tiny_config(path, tmp_path / mode, FINETUNE, training__epochs=3, **keys)
        task = finetuning.Finetuning(cfg)
        assert np.unique(task.loader.cache.state).tolist() == [0]  # nothing is decoded before it is needed
        assert bool(task.eval_cache.store.size) == (mode == "memory")
        found[mode] = finetuning.finetune(cfg), read_losses(tmp_path / mode).tolist()
        assert (task.eval_cache.state == READY).all() == (mode == "memory")  # the training found its memory
    assert found["memory"] == found["none"]


def test_one_epoch_has_no_use_for_a_cache(jpg_beton, tmp_path):
    cfg = tiny_config(jpg_beton, tmp_path / "run", training__epochs=1)
    assert not pretraining.make_loader(cfg, resolve_runtime(cfg.training, 0)).cache.size
