"""Crops of several sizes in trainings: of groups, over the run, spread; resumed to the bit, and fine-tuned from."""

import functools
import itertools

import numpy as np
import pytest
import torch
from helpers import FINETUNE, method_values, read_losses, tiny_config
from torch._dynamo.utils import counters

from idmm_fast.config import ConfigError
from idmm_fast.config.pretrain import check
from idmm_fast.train import checkpoint, pretraining, throughput
from idmm_fast.train.crop_groups import graphs, size_schedule, sizes_by_epoch
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


ONE = {"crops__groups": [{"count": 1, "scale": [0.14, 1.0]}], "training__batch_size": 4}
BLOCKS = ONE | {"crops__spread": 3, "crops__spread_mb": 1}  # two blocks of 8 batches


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.integration
def test_a_run_in_several_blocks_resumes_within_a_block(tiny_beton, tmp_path):
    options = BLOCKS | {"training__epochs": 3, "training__keep_checkpoints": 60, "training__checkpoint_minutes": 1e-9}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", **options))
    curve, weights = read_losses(folder), (folder / "backbone.safetensors").read_bytes()
    assert len(curve) == 48
    for path in checkpoint.listing(folder / "checkpoints")[29:]:
        path.unlink()
    pretrain(tiny_config(tiny_beton, folder, **options, training__resume="auto"))
    assert np.array_equal(read_losses(folder), curve)
    assert (folder / "backbone.safetensors").read_bytes() == weights


def test_a_run_does_not_end_within_a_round_of_several_blocks(tiny_beton, tmp_path):
    says = "does not divide training.epochs=4: take 3 or 6, or another crops.spread; crops.spread_mb=2 makes one block"
    with pytest.raises(ConfigError, match=says):
        Pretraining(tiny_config(tiny_beton, tmp_path, **BLOCKS, training__epochs=4))
    with pytest.raises(
        ConfigError, match=r"nobody knows .*crops\.spread_mb=2 makes one block; or take crops\.spread=1"
    ):
        Pretraining(tiny_config(tiny_beton, tmp_path, **BLOCKS, training__minutes=1.0))
    with pytest.raises(ConfigError, match=r"training\.accumulate=2 does not go with crops\.spread=3"):
        check(tiny_config(tiny_beton, tmp_path, **BLOCKS, training__accumulate=2))
    Pretraining(tiny_config(tiny_beton, tmp_path, **BLOCKS, training__epochs=6))
    Pretraining(tiny_config(tiny_beton, tmp_path, **BLOCKS | {"crops__spread_mb": 2}, training__epochs=4))


def test_compiling_must_pay_for_each_graph(tiny_beton, tmp_path, monkeypatch):
    steps, resolve = [], pretraining.resolve_runtime
    monkeypatch.setattr(pretraining, "resolve_runtime", lambda training, n: steps.append(n) or resolve(training, n))
    for schedule in ([], SCHEDULE):
        cfg = tiny_config(tiny_beton, tmp_path, crops__groups=GROUPS, crops__schedule=schedule, training__epochs=30)
        task = Pretraining(cfg)
        assert graphs(cfg) == {0: 2, 3: 4}[len(schedule)]  # passes of 4 x 16; 2 x 24, 2 x 16; 2 x 32
    assert steps == [120, 40]
    assert task.loader.largest == 32


def test_sizes_change_at_fractions_of_the_run(tiny_beton, tmp_path):
    cfg = tiny_config(tiny_beton, tmp_path, crops__groups=GROUPS, crops__schedule=SCHEDULE, training__epochs=30)
    assert size_schedule(cfg) == {0: [16, 16], 12: [24, 16], 27: [32, 24]}
    assert size_schedule(tiny_config(tiny_beton, tmp_path)) == {}
    cfg.crops.spread, cfg.crops.schedule = 5, cfg.crops.schedule[1:2]
    assert sizes_by_epoch(cfg) == {0: [32, 16], 15: [24, 16]}
    described = Pretraining(cfg).description
    said = "; crops of 32 and 16 pixels, of 24 and 16 pixels from epoch 16 on (at the end none of model.image_size=32)"
    assert said in described
    assert "; crops" not in Pretraining(tiny_config(tiny_beton, tmp_path)).description


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training__minutes": 1.0}, "nobody knows before the end how many there are"),
        ({"crops__schedule": [{"from": 0.5, "size": [16]}]}, r"from 0\.5 on there are 1 sizes, and .* has 2 groups"),
        ({"crops__schedule": [{"from": 0.9, "size": 16}]}, r"no epoch begins at 0\.9 of 4 epochs or later; begin"),
        ({"crops__spread": 3}, r"no epoch begins at 0\.9 of 4 epochs or later, where sizes change every 3 epochs"),
        ({"crops__schedule": [{"from": 0.5, "size": 16}, {"from": 0.5, "size": 8}]}, "from: 0.5, size: 112}], ascend"),
        (
            {"crops__schedule": [{"from": 0.1, "size": 16}, {"from": 0.2, "size": 24}]},
            r"the sizes from 0\.1 and those from 0\.2 on begin with the same epoch, 2 of 4; leave one",
        ),
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
@pytest.mark.parametrize("loss", ["dense", "fused"])
def test_each_size_is_compiled_once(tiny_beton, tmp_path, monkeypatch, loss):
    """Sizes 16, 32, 16 again, and then both: three graphs; none is added when 16 comes again."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # seconds, not minutes
    made, end_epoch = [], throughput.Throughput.end_epoch
    monkeypatch.setattr(
        throughput.Throughput,
        "end_epoch",
        lambda meter: made.append(counters["stats"]["unique_graphs"]) or end_epoch(meter),
    )
    schedule = [{"from": k / 4, "size": size} for k, size in enumerate([16, 32, 16, [32, 16]])]
    options = {"crops__groups": GROUPS, "crops__schedule": schedule, "model__drop_path": 0.0, "head__loss": loss}
    compiled = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "c", training__compile=True, **options)))
    assert made[1] == made[2]
    if loss == "dense":
        assert made == list(itertools.accumulate([1, 1, 0, 1]))
    plain = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "plain", **options)))
    assert np.abs(compiled / plain - 1).max() < 1e-3
