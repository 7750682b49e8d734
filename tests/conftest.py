"""Real photographs for the tests, as a folder tree and as FFCV datasets; kernels that are compiled once."""

import fcntl
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # `make test` runs a worker on each core; torch reads this when imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from helpers import photographs, write_with_ffcv
from PIL import Image

from idmm_fast.beton import write_beton
from idmm_fast.datasets import Split

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
WITHOUT_KERNELS = ("config", "docs", "losses", "models")  # most files of these folders render no crops


def pytest_collection_modifyitems(items):
    """The order of tests for several workers, which start at different places and take tests from each other.

    The first compiles the kernels, while other workers run tests that need none; then long files.
    """
    if WORKER is None:
        return
    long = {item.path for item in items if item.get_closest_marker("integration")}
    rendering = {item.path for item in items if "compiled_kernels" in item.fixturenames}

    def turn(item):
        if "compiled_kernels" in item.originalname:
            return 0
        if item.path.parent.name in WITHOUT_KERNELS and item.path not in rendering:
            return 1
        return 2 if item.path in long else 3

    items.sort(key=turn)


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory):
    """The loader's kernels in numba's cache. The first worker compiles them, the others wait for it and load them."""
    from idmm_fast.loader.compile import compile_kernels

    folder = tmp_path_factory.mktemp("kernels")
    with open((folder.parent.parent if WORKER else folder) / "kernels.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compile_kernels()


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
def jpg_beton(tmp_path_factory, photos, compiled_kernels):
    return _beton(tmp_path_factory.mktemp("jpg"), photos, "jpg")


@pytest.fixture(scope="session")
def raw_beton(tmp_path_factory, photos, compiled_kernels):
    return _beton(tmp_path_factory.mktemp("raw"), photos, "raw")


@pytest.fixture(scope="session")
def ffcv_betons(tmp_path_factory, photos):
    """A folder of files by FFCV's own writer, written once for all workers, since its start takes seconds.

    six.beton holds six photographs; a.beton and b.beton four, the same but for one level of one pixel.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if WORKER else base) / "ffcv"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = folder.with_name("ffcv_draft")
            draft.mkdir(exist_ok=True)
            other = photos[3].copy()
            other[0, 0, 0] ^= 1
            write_with_ffcv(draft, six=photos[:6], a=photos[:4], b=[*photos[:3], other])
            draft.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_beton(tmp_path_factory, compiled_kernels):
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


@pytest.fixture
def without_pictures(monkeypatch):
    """Runs make no pictures: they take most of the time of so small a run, and have tests of their own."""
    from idmm_fast.train import finetuning, task

    monkeypatch.setattr(task, "plot_batch", lambda *args: None)
    monkeypatch.setattr(task, "plot_curves", lambda *args: None)
    monkeypatch.setattr(finetuning, "write_report", lambda *args, **options: None)
