"""The study of class weights' gradients."""

import numpy as np
import pytest
from helpers import tiny_config
from PIL import Image

from idmm_fast.config import ConfigError


@pytest.mark.integration
@pytest.mark.parametrize("epochs", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_class_updates_report_four_variants(tiny_beton, tmp_path, epochs):
    """All variants; with smoothing the classes outside the batch keep moving, and never as far as those inside."""
    from idmm_fast.studies.class_updates import summary, updates

    result = updates(
        tiny_config(tiny_beton, tmp_path / "x"), tmp_path / "out", images=64, epochs=epochs, batch_size=8, head_lr=10.0
    )
    assert set(result) == {"plain", "label smoothing", "CutMix", "both"}
    outside = {way: values["outside"][-1] for way, values in result.items()}
    assert outside["label smoothing"] > 0
    assert all((v["outside"] < v["inside"]).all() for v in result.values())
    assert np.asarray(Image.open(tmp_path / "out" / "updates.png")).std() > 10
    assert "closed form" in summary(result)


def test_a_step_leaves_some_classes_out(tiny_beton, tmp_path):
    from idmm_fast.studies.class_updates import updates

    with pytest.raises(ConfigError, match="a step of 8 images leaves none of the 8 out"):
        updates(tiny_config(tiny_beton, tmp_path / "x"), tmp_path / "out", images=8, batch_size=8)
