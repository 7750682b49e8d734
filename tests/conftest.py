"""Real photographs for the tests, as a folder tree and as FFCV datasets."""

import numpy as np
import pytest
from helpers import photographs
from PIL import Image

from idmm_fast.beton import write_beton
from idmm_fast.datasets import Split


@pytest.fixture(scope="session")
def photos():
    return photographs(40)


@pytest.fixture(scope="session")
def tree(tmp_path_factory, photos):
    """An ImageFolder tree of JPEGs: 4 classes of 10."""
    root = tmp_path_factory.mktemp("tree")
    for k, photo in enumerate(photos):
        folder = root / f"class{k % 4}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(photo).save(folder / f"{k:03d}.jpg", quality=90)
    return root


def _beton(folder, photos, mode):
    split = Split(photos, [k % 4 for k in range(len(photos))], ["a", "b", "c", "d"])
    return write_beton(folder / f"{mode}.beton", split, dataset="test", name="train", mode=mode, quiet=True).path


@pytest.fixture(scope="session")
def jpg_beton(tmp_path_factory, photos):
    return _beton(tmp_path_factory.mktemp("jpg"), photos, "jpg")


@pytest.fixture(scope="session")
def raw_beton(tmp_path_factory, photos):
    return _beton(tmp_path_factory.mktemp("raw"), photos, "raw")


@pytest.fixture(scope="session")
def tiny_beton(tmp_path_factory):
    """64 photographs of 32 x 32 pixels in 4 classes that differ in colour, so that there is something to learn."""
    rng = np.random.default_rng(1)
    tints = np.array([[1.0, 0.4, 0.4], [0.4, 1.0, 0.4], [0.4, 0.4, 1.0], [1.0, 1.0, 0.3]])
    images = []
    for k, photo in enumerate(photographs(64, seed=2)):
        small = np.asarray(Image.fromarray(photo).resize((32, 32)))
        images.append((small * tints[k % 4] * rng.uniform(0.8, 1.0)).astype(np.uint8))
    split = Split(images, [k % 4 for k in range(64)], ["red", "green", "blue", "yellow"])
    return write_beton(
        tmp_path_factory.mktemp("tiny") / "tiny.beton", split, dataset="test", name="train", mode="raw", quiet=True
    ).path
