"""What is told of features without labels: closed forms, and a run that logs it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tiny_config
from torch import nn

from idmm_fast.evaluate import unlabelled
from idmm_fast.evaluate.unlabelled import rankme, unlabelled_metrics
from idmm_fast.runtime.device import resolve_runtime
from idmm_fast.train.pretraining import pretrain

CPU = SimpleNamespace(device="cpu", amp="fp32", channels_last=False, compile=False)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_rankme_of_equal_singular_values_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(3 * basis[:, :rank] @ torch.eye(rank, 16)) == pytest.approx(rank, rel=1e-3)


def test_rankme_is_the_exponential_of_the_entropy():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    share = values / 8
    wanted = float((-(share * share.log()).sum()).exp())
    assert rankme(torch.diag(values)) == pytest.approx(wanted, rel=1e-4)


class Colours(nn.Module):
    """Mean colour and its square: a feature that most crops of an image share."""

    def forward(self, images):
        mean = images.float().mean((2, 3)) - 110
        return torch.cat([mean, mean**2 / 100], 1)


class Constant(nn.Module):
    def forward(self, images):
        return torch.ones(len(images), 4)


def test_images_are_found_again_by_what_their_crops_share(raw_beton):
    runtime = resolve_runtime(CPU, 0)
    state = torch.get_rng_state()
    colours = unlabelled_metrics(Colours(), str(raw_beton), 32, runtime)
    assert unlabelled_metrics(Colours(), str(raw_beton), 32, runtime, 1) == colours  # the same crops again
    assert torch.equal(torch.get_rng_state(), state)
    constant = unlabelled_metrics(Constant(), str(raw_beton), 32, runtime)
    assert constant["instance_top1"] == pytest.approx(100 / 40)  # the first of all is the nearest of each
    assert constant["rankme"] == pytest.approx(1, abs=1e-3)
    assert colours["instance_top1"] > 2 * constant["instance_top1"]
    assert 1 < colours["rankme"] < 6


def test_so_many_images_are_compared_and_the_same_each_time(raw_beton, monkeypatch):
    monkeypatch.setattr(unlabelled, "IMAGES", 9)
    rows = unlabelled._sample(str(raw_beton))
    assert len(set(rows.tolist())) == 9
    assert rows.max() > 20  # of 40: not the first ones
    assert np.array_equal(rows, unlabelled._sample(str(raw_beton)))


class Spoilt(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return torch.full((len(images), 4), self.value)


def test_features_that_are_not_finite_or_zero_end_no_training(raw_beton, capsys):
    runtime = resolve_runtime(CPU, 0)
    assert unlabelled_metrics(Spoilt(float("nan")), str(raw_beton), 32, runtime) == {}
    assert "features are not finite" in capsys.readouterr().err
    assert unlabelled_metrics(Spoilt(0.0), str(raw_beton), 32, runtime)["rankme"] == 1


def test_a_run_logs_it_and_trains_as_without(tiny_beton, tmp_path, without_pictures):
    """In metrics.jsonl, every two epochs and after the last; losses are the same to the bit."""
    losses = {}
    for name, every in (("with", 2), ("without", 0)):
        pretrain(tiny_config(tiny_beton, tmp_path / name, online_eval__unlabelled_every=every, training__epochs=3))
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines]
        assert [line["epoch"] for line in lines if "rankme" in line] == ([1, 2] if every else [])
    assert losses["with"] == losses["without"]
