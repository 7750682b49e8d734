"""Fine-tuning: accuracy, the best checkpoint, resuming, labelled subsets."""

import json

import numpy as np
import pytest
from helpers import FINETUNE, TINY_VIT, read_losses, remove_later_checkpoints, tiny_config

from idmm_fast.config import ConfigError
from idmm_fast.models import create_backbone, load_backbone
from idmm_fast.train import checkpoint
from idmm_fast.train.finetuning import choose_rows, finetune

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.integration]


def test_finetuning_beats_chance_and_reports(tiny_beton, pretrained_run, tmp_path):
    result = finetune(
        tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__epochs=30, model__init=str(pretrained_run))
    )
    assert result["top1"] > 60  # four colours; chance is 25
    assert result["top5"] == 100
    assert json.loads((tmp_path / "f" / "result.json").read_text()) == result
    curve = read_losses(tmp_path / "f")
    assert curve[-8:].mean() < curve[:8].mean()


def test_best_checkpoint_is_kept_beside_the_last(tiny_beton, tmp_path):
    cfg = tiny_config(
        tiny_beton, tmp_path / "f", FINETUNE, training__epochs=5, training__evaluate_every=1, training__lr=1e-2
    )
    result = finetune(cfg)
    lines = [json.loads(line) for line in (tmp_path / "f" / "metrics.jsonl").read_text().splitlines()]
    tested = {line["epoch"]: line["top1"] for line in lines if "top1" in line}
    assert set(tested) == set(range(5))
    assert result["best_top1"] == max(tested.values())
    assert result["top1"] == tested[4]
    best = checkpoint.load(tmp_path / "f" / "checkpoints" / "best.pt")
    assert (best["top1"], best["epoch"]) == (result["best_top1"], result["best_epoch"])
    load_backbone(
        create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), tmp_path / "f" / "checkpoints" / "best.pt"
    )


def test_finetuning_resumes_bit_for_bit(tiny_beton, tmp_path):
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__resume="auto", training__keep_checkpoints=100)
    first = finetune(cfg)
    wanted = read_losses(tmp_path / "f")
    remove_later_checkpoints(tmp_path / "f", 2)
    again = finetune(cfg)
    assert again == first
    assert np.array_equal(read_losses(tmp_path / "f"), wanted)
    assert finetune(cfg) == first  # a finished run is judged again, not trained


def test_choose_rows_takes_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    rows = choose_rows(labels, 5, seed=1)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5]
    assert np.array_equal(rows, choose_rows(labels, 5, seed=1))
    assert not np.array_equal(rows, choose_rows(labels, 5, seed=2))
    assert choose_rows(labels, 0, 0).size == 60
    with pytest.raises(ConfigError, match="class 0 has 10"):
        choose_rows(labels, 11, 0)
