"""Progressive resizing: `finetune.py --stages`."""

import json

import pytest
import torch
from helpers import TINY_VIT, run_script

from idmm_fast.train import checkpoint

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.integration]


def test_stages_start_from_the_stage_before_and_resume(tiny_beton, pretrained_run, tmp_path):
    """The second stage starts from the first one's weights, classifier included; a finished stage is not run again."""
    script = [
        "finetune.py",
        f"--data.train={tiny_beton}",
        f"--data.test={tiny_beton}",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT}",
        "--model.image_size=32",
        "--training.lr=2e-3",
        "--training.amp=fp32",
        "--training.compile=false",
        "--training.batch_size=16",
        "--progressive.stages=[{training.epochs: 8}, "
        "{model.image_size: 64, training.epochs: 2, training.batch_size: 8, training.lr: 1.0e-6}]",
        "--init",
        pretrained_run,
        "--stages",
        f"--logging.run_dir={tmp_path / 'l'}",
    ]
    shown = run_script(*script)
    assert shown.returncode == 0, shown.stderr
    one, two = (tmp_path / "l" / f"stage_{k}" for k in (1, 2))
    results = json.loads((tmp_path / "l" / "result.json").read_text())
    assert [json.loads((f / "result.json").read_text()) for f in (one, two)] == results
    assert shown.stdout.count("top-1") == 2
    first, second = (checkpoint.newest(f / "checkpoints")[1]["model"] for f in (one, two))
    for key in (
        "head.weight",
        "backbone.blocks.0.attn.qkv.weight",
    ):  # a rate of nearly nothing: the second stage is where the first ended
        assert torch.allclose(first[key], second[key], atol=1e-4)
        assert not torch.equal(first[key], second[key])
    assert second["backbone.pos_embed"].shape[1] == 1 + 64
    for path in (*checkpoint.listing(two / "checkpoints"), two / "model.safetensors"):
        path.unlink()
    before = (one / "metrics.jsonl").read_bytes()
    assert run_script(*script).returncode == 0
    assert json.loads((tmp_path / "l" / "result.json").read_text()) == results
    assert (one / "metrics.jsonl").read_bytes() == before
    trial = run_script(
        *script, "--training.max_steps=2"
    )  # it had written result.json and then missed the weights of stage 1
    assert trial.returncode == 1
    assert "does not go with --stages" in trial.stderr
    wrong = run_script(*script, "--progressive.stages=[{model.img_size: 64}]")
    assert wrong.returncode == 1
    assert "model.image_size" in wrong.stderr
