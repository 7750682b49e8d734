"""From a folder of images to predictions on new ones: the commands of the README, as a person types them."""

import csv
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, photographs
from PIL import Image

from idmm_fast.__main__ import main

TINY = [
    "--model.name=vit_tiny_patch16_224",
    "--model.options={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "--model.image_size=32",
]
QUICK = [
    "--training.compile=false",
    "--training.batch_size=16",
    "--training.minutes=0",
    "--training.epochs=2",
    "--training.warmup_epochs=1",
    "--training.lr=2e-3",
]
SHORT = {
    "inspect": ["--no-measure"],
    "pretrain": [*TINY, *QUICK],
    "finetune": [*TINY, *QUICK],
}  # what makes the README's commands quick
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
@pytest.mark.usefixtures("compiled_kernels")
def test_from_a_folder_to_predictions(folder, capsys):
    Path("new_images").mkdir()
    Image.open("my_images/1/0.jpg").save("new_images/new.png")
    said = {}
    for line in re.findall(r"^idmm-fast (.*)$", (ROOT / "README.md").read_text(), re.M):
        verb, *arguments = shlex.split(line)
        main([verb, *arguments, *SHORT.get(verb, [])])
        said[verb] = "".join(capsys.readouterr())
    assert list(said) == ["inspect", "pretrain", "evaluate", "finetune", "predict"]
    for found in (
        "3 classes in train, of 15 images each",
        "1 damaged: first my_images/2/broken.jpg",
        "--folds 5",
    ):
        assert found in said["inspect"], found
    assert len(list(Path("runs/my_images_inspected").iterdir())) == 3
    assert Path("runs/mine/backbone.safetensors").is_file()
    assert "knn20" in said["evaluate"]
    for line in ("finetune --config own --data my_images --init", "evaluate --checkpoint runs/mine --data my_images"):
        assert line in (ROOT / "README.md").read_text()
        assert f": idmm-fast {line}" in said["pretrain"]  # each verb names the one after it
    assert "next: idmm-fast predict --checkpoint runs/mine_finetune --images" in said["finetune"]
    assert "9 of the 46 training images, 20 % of each class" in said["evaluate"]  # with the damaged one
    assert "predictions.csv: 1 images predicted" in said["predict"]
    result = json.loads(Path("runs/mine_finetune/result.json").read_text())
    assert (result["test_images"], result["train_images"]) == (9, 36)
    report = json.loads(Path("runs/mine_finetune/report.json").read_text())
    assert [row["name"] for row in report["classes"]] == ["1", "2", "10"]  # as people count
    (listed,) = Path("cache").glob("*/test.txt")
    held_out = listed.read_text().splitlines()
    with open("runs/mine_finetune/test_predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == held_out
    assert all(Path(row["file"]).parent.name == row["true"] for row in table)
    main(["evaluate", "--checkpoint", "runs/mine_finetune", "--data", "my_images", "--out", "elsewhere"])
    assert Path("elsewhere/report_my_images_test/report.md").is_file()
    assert Path("elsewhere/neighbours.png").is_file()
    main(["predict", "--checkpoint", "runs/mine_finetune", "--images", *held_out, "--out", "predictions.csv"])
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} <= set(TINTS)
    right = [Path(row["file"]).parent.name == row["label"] for row in rows]
    assert 100 * np.mean(right) == pytest.approx(result["top1"]) == pytest.approx(report["top1"])
    main(["predict", "--checkpoint", "runs/mine_finetune", "--images", "my_images", "--out", "all.json"])
    everything = json.loads(Path("all.json").read_text())
    assert len(everything["predictions"]) == 45
    assert [os.path.basename(entry["file"]) for entry in everything["damaged"]] == ["broken.jpg"]
    assert everything["label_names"] == ["1", "2", "10"]
    main(["embed", "--checkpoint", "runs/mine", "--images", "my_images", "--out", "features.npz"])
    features = np.load("features.npz")
    assert features["features"].shape == (45, 32)
