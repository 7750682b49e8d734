"""From a folder of images to predictions on new ones, with the console command, as a person goes."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import photographs
from PIL import Image

from idmm_fast.__main__ import main

TINY = [
    "--model.name=vit_tiny_patch16_224",
    "--model.options={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "--model.image_size=32",
]
QUICK = ["--training.compile=false", "--training.batch_size=16", "--training.warmup_epochs=1", "--training.lr=2e-3"]
TINTS = {"1": (1.0, 0.4, 0.4), "2": (0.4, 1.0, 0.4), "10": (0.4, 0.4, 1.0)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """my_images/CLASS/* of three classes that differ in colour: JPEG, PNG, another ending, a text, a damaged image."""
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for k, photo in enumerate(photographs(45, seed=4)):
        name, tint = list(TINTS.items())[k % 3]
        path = Path("my_images") / name / f"{k}{('.jpg', '.png', '.jfif')[k // 3 % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if path.suffix == ".png" else "JPEG"
        Image.fromarray((photo * np.array(tint)).astype(np.uint8)).save(path, kind)
    Path("my_images/1/notes.txt").write_text("no image")
    Path("my_images/2/broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


@pytest.mark.integration
@pytest.mark.usefixtures("compiled_kernels", "without_pictures")
def test_from_a_folder_to_predictions(folder, capsys):
    main(["pretrain", "--data", "my_images", "--out", "runs/mine", *TINY, *QUICK, "--training.epochs=2"])
    assert Path("runs/mine/backbone.safetensors").is_file()
    capsys.readouterr()
    tune = ["finetune", "--data", "my_images", "--init", "runs/mine", "--out", "runs/tuned"]
    main([*tune, "--model.image_size=32", *QUICK, "--training.epochs=2"])  # name and options are the run's
    said = capsys.readouterr()
    assert "9 of the 46 training images, 20 % of each class" in said.out + said.err  # with the damaged one
    result = json.loads(Path("runs/tuned/result.json").read_text())
    assert (result["test_images"], result["train_images"]) == (9, 36)
    (listed,) = Path("cache").glob("*/test.txt")
    held_out = listed.read_text().splitlines()
    main(["predict", "--checkpoint", "runs/tuned", "--images", *held_out, "--out", "predictions.csv"])
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} <= set(TINTS)
    right = [Path(row["file"]).parent.name == row["label"] for row in rows]
    assert 100 * np.mean(right) == pytest.approx(result["top1"])
    main(["predict", "--checkpoint", "runs/tuned", "--images", "my_images", "--out", "all.json"])
    everything = json.loads(Path("all.json").read_text())
    assert len(everything["predictions"]) == 45
    assert [os.path.basename(entry["file"]) for entry in everything["damaged"]] == ["broken.jpg"]
    assert everything["label_names"] == ["1", "2", "10"]  # as people count
    main(["embed", "--checkpoint", "runs/mine", "--images", "my_images", "--out", "features.npz"])
    features = np.load("features.npz")
    assert features["features"].shape == (45, 32)
