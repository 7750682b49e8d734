"""Fine-tuning: accuracy, the best checkpoint, resuming, labelled subsets."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers import FINETUNE, TINY_VIT, read_losses, remove_later_checkpoints, tiny_config
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from idmm_fast.beton import open_beton
from idmm_fast.beton.subset import write_subset
from idmm_fast.config import ConfigError
from idmm_fast.evaluate import EvaluationImages
from idmm_fast.evaluate.accuracy import top_k
from idmm_fast.loader.cutmix import sample_mixup
from idmm_fast.models import Classifier, create_backbone, init_head, load_backbone
from idmm_fast.runtime.device import resolve_runtime
from idmm_fast.train import checkpoint
from idmm_fast.train.finetuning import Finetuning, choose_rows, finetune

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


@pytest.mark.parametrize("epoch", [0, 1])
def test_images_are_mixed_by_mixup_in_even_epochs_and_by_cutmix_in_odd_ones(tiny_beton, tmp_path, epoch):
    """The loss is that of the mixture, written out; where pixels come mixed from the loader, they stay as they are."""
    values = {"mixup_cutmix__alpha": 1.0, "training__label_smoothing": 0.1, "training__seed": 5}
    task = Finetuning(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, **values))
    task.prepared = task.model.eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=draw)
    rows, others = torch.randperm(64, generator=draw)[:12].chunk(2)
    lam = torch.rand(6, generator=draw)
    x = task.model.normalize(images)
    if epoch == 0:
        level, partner = sample_mixup(5, epoch, 2, 6, 1.0)
        assert 0.05 < level < 0.95
        x, lam = level * x + (1 - level) * x[partner], torch.full((6,), level)
        others = rows[partner]
    losses = [
        cross_entropy(task.model.head(task.model.backbone(x)), task.labels[of], reduction="none", label_smoothing=0.1)
        for of in (rows, others)
    ]
    wanted = (lam * losses[0] + (1 - lam) * losses[1]).mean()
    found = task.loss([(images, rows, others if epoch else rows, torch.ones(6) if epoch == 0 else lam)], epoch, 2)
    assert found.item() == pytest.approx(task.loader.loss_weight(2) * wanted.item(), rel=1e-5)


def test_test_images_that_are_training_images_are_told(tiny_beton, tmp_path, capsys):
    write_subset(tiny_beton, np.arange(9), tmp_path / "nine.beton")
    write_subset(tiny_beton, np.arange(9, 64), tmp_path / "rest.beton")
    for train, is_told in ((tiny_beton, True), (tmp_path / "rest.beton", False)):
        Finetuning(tiny_config(train, tmp_path / "f", FINETUNE, data__test=str(tmp_path / "nine.beton")))
        told = f"warning: 9 of 9 images of {tmp_path / 'nine.beton'} are in {train} too"
        assert (told in capsys.readouterr().err) == is_told


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


def test_a_moving_average_of_the_weights_is_evaluated_and_kept(tiny_beton, tmp_path, monkeypatch):
    """It is that of the weights after each step, with the decay of timm's warm-up; also where the run was stopped."""
    folder, seen, after_step = tmp_path / "f", [], Finetuning.after_step

    def recorded(self, *args):
        after_step(self, *args)
        seen.append(copy.deepcopy(self.model.state_dict()))

    monkeypatch.setattr(Finetuning, "after_step", recorded)
    values = {"training__ema": 0.8, "training__resume": "auto", "training__keep_checkpoints": 100, "training__lr": 1e-2}
    result = finetune(tiny_config(tiny_beton, folder, FINETUNE, **values))
    wanted = seen[0]
    for step, weights in enumerate(seen):
        decay = min(0.8, 1 - (step + 1) ** (-2 / 3))
        wanted = {k: decay * v + (1 - decay) * weights[k] for k, v in wanted.items()}
    saved = load_file(folder / "model.safetensors")
    for key, value in wanted.items():
        name = key.removeprefix("backbone.")
        assert torch.allclose(saved[name], value, atol=1e-6)
    assert not torch.allclose(saved["head.weight"], seen[-1]["head.weight"], atol=1e-4)

    last = checkpoint.listing(folder / "checkpoints")[-1]
    model = Classifier(create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), init_head(32, 4))
    load_backbone(model.backbone, last, model.head)
    assert torch.equal(model.head.weight, saved["head.weight"])
    labels = torch.from_numpy(open_beton(tiny_beton).label)
    runtime = resolve_runtime(tiny_config(tiny_beton, folder, FINETUNE).training, 0)
    again = top_k(model, EvaluationImages(tiny_beton, 32, 16), labels, runtime)
    assert {k: result[k] for k in again} == again

    remove_later_checkpoints(folder, 2)
    assert finetune(tiny_config(tiny_beton, folder, FINETUNE, **values)) == result
    assert all(torch.equal(value, saved[key]) for key, value in load_file(folder / "model.safetensors").items())


def test_choose_rows_takes_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    rows = choose_rows(labels, 5, seed=1)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5]
    assert np.array_equal(rows, choose_rows(labels, 5, seed=1))
    assert not np.array_equal(rows, choose_rows(labels, 5, seed=2))
    assert choose_rows(labels, 0, 0).size == 60
    some = np.where(np.arange(60) % 2, labels, -1)
    assert choose_rows(some, 0, 0).tolist() == list(range(1, 60, 2))
    assert np.bincount(some[choose_rows(some, 5, 0)]).tolist() == [5, 5, 5]
    with pytest.raises(ConfigError, match="class 0 has 10"):
        choose_rows(labels, 11, 0)
