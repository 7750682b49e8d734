"""The trainer's order of work: what was launched is waited for as late as it can be."""

import pytest
from helpers import read_losses, tiny_config

from idmm_fast.methods import IDMM
from idmm_fast.runtime.device import HostCopy
from idmm_fast.train.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_a_loss_is_read_when_the_next_step_is_launched_in_the_next_epoch_too(tiny_beton, tmp_path, monkeypatch):
    """Four steps an epoch, and a checkpoint after the second one: only there the trainer waits for its last step."""
    happened, forward, tolist = [], IDMM.forward, HostCopy.tolist
    monkeypatch.setattr(IDMM, "forward", lambda self, *args: (happened.append("launch"), forward(self, *args))[1])
    monkeypatch.setattr(HostCopy, "tolist", lambda self: (happened.append("read"), tolist(self))[1])
    values = {"training__epochs": 3, "training__checkpoint_every": 2}
    losses = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "run", **values)))
    assert len(losses) == 12
    one_ahead = lambda steps: ["launch"] + ["launch", "read"] * (steps - 1) + ["read"]  # noqa: E731
    assert happened == one_ahead(8) + one_ahead(4)
