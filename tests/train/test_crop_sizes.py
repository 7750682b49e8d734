"""Crops of several sizes in trainings: of groups, over the run, spread; resumed to the bit, and fine-tuned from."""

import itertools

import numpy as np
import pytest
from helpers import FINETUNE, method_values, read_losses, tiny_config
from torch._dynamo.utils import counters

from idmm_fast.config import ConfigError
from idmm_fast.train import checkpoint, throughput
from idmm_fast.train.crop_groups import size_schedule, sizes_by_epoch
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import Pretraining, pretrain

GROUPS = [{"count": 2, "scale": [0.14, 1.0]}, {"count": 2, "scale": [0.05, 0.4], "size": 16}]
SCHEDULE = [{"from": 0, "size": 16}, {"from": 0.4, "size": [24, 16]}, {"from": 0.9, "size": [32, 24]}]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("idmm", {"crops__schedule": SCHEDULE[:2], "crops__spread": 2, "head__loss": "fused"}),
        ("dino", {"crops__schedule": SCHEDULE[:2]}),
    ],
)
def test_a_run_with_crops_of_several_sizes_resumes_anywhere_and_is_fine_tuned_from(tiny_beton, tmp_path, name, options):
    """64 images in steps of 24; a checkpoint after each step, of which some are left."""
    options = method_values(name) | options | {"crops__groups": GROUPS, "training__keep_checkpoints": 30}
    options |= {"training__epochs": 4, "training__batch_size": 24, "training__checkpoint_minutes": 1e-9}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", **options))
    curve = read_losses(folder)
    assert len(curve) == 12
    assert np.isfinite(curve).all()
    weights = (folder / "backbone.safetensors").read_bytes()
    for left in (8, 4):  # in mid-epoch, before and after changes
        for path in checkpoint.listing(folder / "checkpoints")[left:]:
            path.unlink()
        pretrain(tiny_config(tiny_beton, folder, **options, training__resume="auto"))
        assert np.array_equal(read_losses(folder), curve)
        assert (folder / "backbone.safetensors").read_bytes() == weights
    cfg = tiny_config(tiny_beton, tmp_path / "tuned", FINETUNE, model__init=str(folder), training__epochs=1)
    assert finetune(cfg)["top1"] >= 0


def test_sizes_change_at_fractions_of_the_run(tiny_beton, tmp_path):
    cfg = tiny_config(tiny_beton, tmp_path, crops__groups=GROUPS, crops__schedule=SCHEDULE, training__epochs=30)
    assert size_schedule(cfg) == {0: [16, 16], 12: [24, 16], 27: [32, 24]}
    assert size_schedule(tiny_config(tiny_beton, tmp_path)) == {}
    cfg.crops.spread, cfg.crops.schedule = 5, cfg.crops.schedule[1:2]
    assert sizes_by_epoch(cfg) == {0: [32, 16], 15: [24, 16]}
    described = Pretraining(cfg).description
    assert "; crops of 32 and 16 pixels, of 24 and 16 pixels from epoch 16 on" in described


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training__minutes": 1.0}, "nobody knows before the end how many there are"),
        ({"crops__schedule": [{"from": 0.5, "size": [16]}]}, r"from 0\.5 on there are 1 sizes, and .* has 2 groups"),
        ({"crops__schedule": [{"from": 0.9, "size": 16}]}, r"no epoch begins at 0\.9 of 4 epochs or later; begin"),
        ({"crops__spread": 3}, r"no epoch begins at 0\.9 of 4 epochs or later, where sizes change every 3 epochs"),
        ({"crops__schedule": [{"from": 0.5, "size": 16}, {"from": 0.5, "size": 8}]}, "from: 0.5, size: 112}], ascend"),
        ({"crops__schedule": [{"from": 1, "size": 16}]}, "a list like"),
        ({"crops__schedule": [{"size": 16}]}, "a list like"),
        ({"crops__schedule": [{"from": k / 9, "size": 16} for k in range(8)]}, "of 7 at most"),
    ],
)
def test_a_schedule_that_does_not_fit_is_a_sentence(tiny_beton, tmp_path, changes, says):
    changes = {"training__epochs": 4, "crops__groups": GROUPS, "crops__schedule": SCHEDULE} | changes
    with pytest.raises(ConfigError, match=says):
        size_schedule(tiny_config(tiny_beton, tmp_path, **changes))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_each_size_is_compiled_once(tiny_beton, tmp_path, monkeypatch):
    """Sizes 16, 32, 16 again, and then both: three graphs."""
    counters.clear()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    graphs, end_epoch = [], throughput.Throughput.end_epoch
    monkeypatch.setattr(
        throughput.Throughput,
        "end_epoch",
        lambda meter: graphs.append(counters["stats"]["unique_graphs"]) or end_epoch(meter),
    )
    schedule = [{"from": k / 4, "size": size} for k, size in enumerate([16, 32, 16, [32, 16]])]
    options = {"crops__groups": GROUPS, "crops__schedule": schedule, "model__drop_path": 0.0}
    compiled = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "c", training__compile=True, **options)))
    assert graphs == list(itertools.accumulate([1, 1, 0, 1]))
    plain = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "plain", **options)))
    assert np.abs(compiled / plain - 1).max() < 1e-3
