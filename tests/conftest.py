"""Real photographs for the tests: the two that come with scikit-learn, cut into many of several sizes. And a way to run the scripts."""

import contextlib
import importlib.util
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from idmm_fast.beton import write_beton
from idmm_fast.datasets import Split


def photographs(count, seed=0, low=90, high=260):
    """`count` different windows of two photographs, uint8 (H, W, 3), of random size and shape."""
    sources = load_sample_images().images
    rng = np.random.default_rng(seed)
    result = []
    for k in range(count):
        source = sources[k % len(sources)]
        h, w = rng.integers(low, high, 2)
        top, left = rng.integers(0, source.shape[0] - h), rng.integers(0, source.shape[1] - w)
        result.append(np.ascontiguousarray(source[top : top + h, left : left + w]))
    return result


def call(script, *args):
    """Run a script of the top level with these arguments, in this process: subprocess.CompletedProcess, as if it were one of its own."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), Path(__file__).parent.parent / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            module.main([str(a) for a in args])
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess([script, *args], code or 0, out.getvalue(), err.getvalue())


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
