"""Losses that are not finite."""

import contextlib
import json

import pytest
import torch
from helpers import tiny_config

from idmm_fast.methods import IDMM
from idmm_fast.train.nonfinite import NonFiniteGuard
from idmm_fast.train.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_step_with_a_nonfinite_loss_is_skipped_and_counted(tiny_beton, tmp_path, monkeypatch):
    """The weights before and after it are the same to the last bit; the step before it moved them."""
    seen, forward = [], IDMM.forward

    def spoiled(self, *args):
        seen.append(torch.cat([p.detach().flatten() for p in self.parameters()]))
        return forward(self, *args) * (float("nan") if len(seen) == 6 else 1.0)

    monkeypatch.setattr(IDMM, "forward", spoiled)
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run"))
    assert not torch.equal(seen[4], seen[5])
    assert torch.equal(seen[5], seen[6])
    assert not torch.equal(seen[6], seen[7])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(16))
    assert [line["step"] for line in lines if "loss" not in line] == [5]
    assert lines[5]["nonfinite_steps"] == 1
    assert (folder / "backbone.safetensors").exists()


def test_nonfinite_losses_in_a_row_end_the_run_with_a_message(tiny_beton, tmp_path):
    cfg = tiny_config(
        tiny_beton, tmp_path / "run", training__lr=1e30, training__warmup_epochs=0, training__max_nonfinite_steps=3
    )
    with pytest.raises(
        FloatingPointError,
        match=r"the loss became .* 3 times in a row; the last batch held the rows \d+, .*tiny\.beton",
    ):
        pretrain(cfg)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["nonfinite_steps"] for line in lines if "nonfinite_steps" in line] == [1, 2, 3]


@pytest.mark.parametrize(
    ("most", "in_a_row", "last", "ends"),
    [(1, 1, True, True), (1, 1, False, True), (3, 2, False, False), (3, 1, True, False), (3, 2, True, True)],
)
def test_the_last_step_has_two_in_a_row_at_most(most, in_a_row, last, ends):
    guard = NonFiniteGuard(most)
    for _ in range(in_a_row):
        guard.count(1)
    with pytest.raises(FloatingPointError) if ends else contextlib.nullcontext():
        guard.check("step 3", float("nan"), last, torch.tensor([1]), "x.beton")
