"""From a dataset's own files to a trained backbone, by the scripts."""

import math

import pytest
from helpers import ROOT, TINY_VIT, photographs, read_losses, run_script
from PIL import Image

from idmm_fast.beton import open_beton


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.integration
def test_pets_from_raw_files_to_a_falling_loss(tmp_path):
    """write_datasets.py --ds pets, then train_idmm.py --config rn_configs/pets.yaml with everything made small."""
    lines = {"trainval": [], "test": []}
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "annotations").mkdir()
    for k, photo in enumerate(photographs(48, seed=5)):
        breed = ("Abyssinian", "beagle", "Bengal")[k % 3]
        Image.fromarray(photo).save(tmp_path / "raw" / "images" / f"{breed}_{k}.jpg")
        lines["test" if k >= 40 else "trainval"].append(f"{breed}_{k} {k % 3 + 1} 1 1")
    for split, rows in lines.items():
        (tmp_path / "raw" / "annotations" / f"{split}.txt").write_text("\n".join(rows) + "\n")
    converted = run_script("write_datasets.py", "--ds", "pets", "--root", tmp_path / "raw", "--out", tmp_path / "data")
    assert converted.returncode == 0, converted.stderr
    assert len(open_beton(tmp_path / "data" / "pets_train.beton")) == 40
    shown = run_script(
        "train_idmm.py",
        "--config",
        ROOT / "rn_configs" / "pets.yaml",
        "--training.epochs=25",
        "--training.batch_size=20",
        "--training.lr=2e-3",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT | {'patch_size': 16}}",
        "--training.compile=false",
        f"--data.train={tmp_path / 'data' / 'pets_train.beton'}",
        f"--logging.run_dir={tmp_path / 'run'}",
    )
    assert shown.returncode == 0, shown.stderr
    assert "done" in shown.stdout
    curve = read_losses(tmp_path / "run")
    assert curve[-6:].mean() < 0.97 * 2 * math.log(40)  # two groups, 40 images: 1 without learning, 0.958 was measured
