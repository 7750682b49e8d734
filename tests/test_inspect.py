"""What inspect_data.py finds in folders and betons in which everything is known."""

import shutil

import numpy as np
import pytest
from helpers import run_script
from PIL import Image

from idmm_fast.beton import write_beton
from idmm_fast.datasets import folder


@pytest.fixture
def root(tmp_path, photos):
    """mine/: a (12 images), b (3, one gray, one damaged), a test split with one image of the training split."""
    for k in range(14):
        path = tmp_path / "mine" / "train" / ("a" if k < 12 else "b") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[k][: 80 + k, :150]).convert("L" if k == 13 else "RGB").save(path)
    (tmp_path / "mine/train/b/cut.png").write_bytes(b"no image")
    (tmp_path / "mine/test/b").mkdir(parents=True)
    Image.open(tmp_path / "mine/train/a/3.png").save(tmp_path / "mine/test/b/other.bmp")
    shutil.copy(tmp_path / "mine/train/a/5.png", tmp_path / "mine/train/a/again.png")
    return tmp_path / "mine"


def test_everything_that_is_wrong_with_a_folder_is_said(root, tmp_path):
    done = run_script("inspect_data.py", root, "--out", tmp_path / "sheets")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for wanted in (
        "shorter side 80 to 93 pixels",
        "1 gray, 15 in colour",
        f"1 damaged: first {root}/train/b/cut.png: ",
        f"1 images twice or more within a split; first {root}/train/a/5.png and {root}/train/a/again.png",
        f"1 images twice or more ACROSS SPLITS: accuracy on them is not to be trusted; first {root}/train/a/3.png and "
        f"{root}/test/b/other.bmp",
        f"1 images twice or more with different labels; first {root}/train/a/3.png",
        "2 classes in train, of 2 (b) to 13 (a) images",
        "1 with fewer than 10 images: b (2)",
        "for 15 training images with a shorter side of ",
        f"python write_datasets.py --ds folder --root {root} --name mine\n",
        "--data.train=data/mine_train.beton --model.image_size=64",
        "3 contact sheets",
    ):
        assert wanted in said, wanted
    sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert sheets == ["test_0001_b.png", "train_0000_a.png", "train_0001_b.png"]
    first = np.asarray(Image.open(tmp_path / "sheets" / "train_0000_a.png"))
    assert first.shape == (2 * 96, 8 * 96, 3)
    assert first[:40, :90].std() > 10


def test_betons_are_looked_at_as_their_folder_is(root, tmp_path):
    betons = [
        write_beton(tmp_path / f"m_{s}.beton", split, dataset="folder", name=s, mode="raw", quiet=True).path
        for s, split in folder.load(root).items()
    ]
    said = run_script("inspect_data.py", *betons, "--out", tmp_path / "sheets").stdout
    assert "1 images twice or more ACROSS SPLITS" in said
    assert "2 classes in train, of 2 (b) to 13 (a) images" in said
    assert "write_datasets.py" not in said
    assert "0 damaged" in said


def test_a_good_flat_folder_is_enough_for_pretraining(tmp_path, photos):
    for k in range(3):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(photos[k]).save(tmp_path / "x" / f"{k}.png")
    said = run_script("inspect_data.py", tmp_path / "x", "--out", tmp_path / "sheets").stdout
    assert "duplicates, by their pixels\n  none" in said
    assert "one class or none: enough for pretraining" in said
    missing = run_script("inspect_data.py", tmp_path / "nothing")
    assert missing.returncode == 1
    assert "is not a folder" in missing.stderr
