"""The folder of a small sweep."""

import pytest
import yaml
from helpers import ROOT, TINY_VIT


@pytest.fixture
def sweep_dir(tmp_path, tiny_beton):
    """A folder with a small configuration, the methods' files, and the betons tiny_train and tiny_test."""
    (tmp_path / "methods").symlink_to(ROOT / "rn_configs" / "methods")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"tiny_{split}.beton").symlink_to(tiny_beton)
    small = {"batch_size": 32, "lr": 1e-3, "compile": False, "amp": "fp32"}
    (tmp_path / "compare.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": "vit_tiny_patch16_224", "options": TINY_VIT, "drop_path": 0.0},
                "warmup_fraction": 0.1,
                "pretrain": {"model": {"image_size": 24}, "training": small},
                "finetune": {"model": {"image_size": 32}, "training": small},
                "methods": {
                    "simclr": {"method.options": {"hidden": 16, "dim": 8}},
                    "wild": {"base": "idmm", "training.lr": 1e30, "training.max_nonfinite_steps": 2},
                    "idmm_plain": {"base": "idmm", "cutmix.alpha": 0},
                },
            }
        )
    )
    return tmp_path
