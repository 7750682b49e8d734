"""The run that tests of several files look at."""

import pytest
from helpers import tiny_config

from idmm_fast.train.pretraining import pretrain


@pytest.fixture(scope="session")
def pretrained_run(tiny_beton, tmp_path_factory):
    """A pretraining of 30 epochs that others look at."""
    return pretrain(
        tiny_config(tiny_beton, tmp_path_factory.mktemp("run") / "run", training__epochs=30, training__lr=4e-3)
    )
