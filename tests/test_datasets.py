"""The datasets, read from small trees laid out as upstream lays them out."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from idmm_fast import datasets
from idmm_fast.datasets import DatasetError, demo

ROOT = Path(__file__).parent.parent


def photo(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (value, 0, 0)).save(path)


@pytest.fixture
def pets(tmp_path):
    """images/Breed_N.jpg and annotations/{trainval,test}.txt with lines `Breed_N class species breed`, as upstream has them."""
    lines = {"trainval": [], "test": []}
    for breed, c in (("Abyssinian", 1), ("american_bulldog", 2), ("Zebra_fox", 3)):
        for n in range(1, 8):
            photo(tmp_path / "images" / f"{breed}_{n}.jpg", 10 * c + n)
            lines["test" if n > 5 else "trainval"].append(f"{breed}_{n} {c} 1 {c}")
    (tmp_path / "annotations").mkdir()
    for split, rows in lines.items():
        (tmp_path / "annotations" / f"{split}.txt").write_text(
            "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(rows) + "\n"
        )
    (tmp_path / "images" / "._Abyssinian_1.jpg").write_bytes(b"mac")  # upstream's archive has such files
    return tmp_path


@pytest.fixture
def flowers(tmp_path):
    """jpg/image_NNNNN.jpg, imagelabels.mat (labels from 1) and setid.mat (trnid, valid, tstid), as upstream has them."""
    labels = np.array([1, 1, 2, 2, 3, 3, 1, 2, 3], np.uint8)
    for n in range(1, 10):
        photo(tmp_path / "jpg" / f"image_{n:05d}.jpg", 20 * n)
    savemat(tmp_path / "imagelabels.mat", {"labels": labels[None]})
    savemat(
        tmp_path / "setid.mat",
        {"trnid": np.array([[1, 3, 5]]), "valid": np.array([[2, 4]]), "tstid": np.array([[6, 7, 8, 9]])},
    )
    return tmp_path


def test_pets(pets):
    splits = datasets.load("pets", pets)
    assert {k: len(v) for k, v in splits.items()} == {"train": 15, "test": 6}
    assert splits["train"].classes == ["Abyssinian", "american_bulldog", "Zebra_fox"]
    for split in splits.values():
        for image, label in zip(split.images, split.labels):
            assert image.name.rsplit("_", 1)[0] == split.classes[label]


def test_flowers_trains_on_train_and_val(flowers):
    splits = datasets.load("flowers", flowers)
    assert [p.name for p in splits["train"].images] == [f"image_{n:05d}.jpg" for n in (1, 3, 5, 2, 4)]
    assert splits["train"].labels == [0, 1, 2, 0, 1]
    assert splits["test"].labels == [2, 0, 1, 2]
    assert len(splits["train"].classes) == 3


@pytest.mark.parametrize("name", ["pets", "flowers"])
def test_a_missing_image_is_named(request, name):
    root = request.getfixturevalue(name)
    victim = next((root / ("images" if name == "pets" else "jpg")).glob("[A-Za-z]*.jpg"))
    victim.unlink()
    with pytest.raises(DatasetError, match="missing"):
        datasets.load(name, root)


@pytest.mark.parametrize("name", ["pets", "flowers", "demo"])
def test_without_network_the_address_is_given(name, tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads

    def refuse(*args, **kwargs):
        raise OSError("no network")

    for attribute in ("_urlretrieve", "download_url", "download_and_extract_archive"):
        monkeypatch.setattr(downloads, attribute, refuse)
    for module in ("oxford_iiit_pet", "flowers102", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    monkeypatch.setattr(demo, "DEBIAN", tmp_path / "none")
    with pytest.raises(DatasetError, match="https://"):
        datasets.load(name, tmp_path / "empty")


def test_demo_reads_idx_files_and_balances_classes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for stem, n in (("train", 3000), ("t10k", 50)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for what, array, dims in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            head = bytes([0, 0, 8, dims]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{stem}-{what}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
        if stem == "train":
            wanted = images
    splits = datasets.load("demo", tmp_path)
    assert len(splits["train"]) == 2040
    assert np.bincount(splits["train"].labels).tolist() == [204] * 10
    assert np.array_equal(splits["train"].images[7], wanted[7])
    assert len(splits["test"]) == 50


def test_folder_forms(tmp_path):
    for split in ("train", "val"):
        for c in ("b", "a"):
            photo(tmp_path / "two" / split / c / "deep" / "1.JPG", 5)
    splits = datasets.load("folder", tmp_path / "two")
    assert set(splits) == {"train", "test"}
    assert splits["test"].classes == ["a", "b"]
    assert splits["test"].labels == [0, 1]
    photo(tmp_path / "flat" / "1.png", 1)
    assert datasets.load("folder", tmp_path / "flat")["train"].classes == ["all"]
    photo(tmp_path / "two" / "val" / "c" / "1.png", 1)
    with pytest.raises(DatasetError, match="classes that the training split does not"):
        datasets.load("folder", tmp_path / "two")
    (tmp_path / "none" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match="No image"):
        datasets.load("folder", tmp_path / "none")


def test_help_lists_every_dataset():
    shown = subprocess.run(
        [sys.executable, ROOT / "write_datasets.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in datasets.names():
        assert name in shown
