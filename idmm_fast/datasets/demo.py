"""The demo: 2,040 training and all 10,000 test photographs of Fashion-MNIST, for pretraining ViTs in minutes.

Source: Xiao et al., arXiv 1708.07747 (MIT licence); 28 x 28 pixels, 10 classes. Debian's package
dataset-fashion-mnist has the files; elsewhere torchvision fetches the same files from their official place.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from .split import DatasetError, Source, Split

SOURCE = Source("https://github.com/zalandoresearch/fashion-mnist", 10, {"train": 2040, "test": 10000}, "30 MB", "MIT")

CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
PER_CLASS = 204  # 2,040 images, as many as Flowers-102 has for training
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
STEMS = {"train": "train", "test": "t10k"}


def _folder(root: Path) -> Path:
    """Where the four files are; downloads them to `root` if they are nowhere."""
    for folder in (root, root / "FashionMNIST" / "raw", DEBIAN):
        if all(
            (folder / f"{stem}-{what}.gz").exists()
            for stem in STEMS.values()
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ):
            return folder
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (RuntimeError, OSError) as error:
        raise DatasetError(
            f"Fashion-MNIST could not be downloaded ({error}). "
            f"Install it with `sudo apt-get install dataset-fashion-mnist`, or put the four files "
            f"train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
            f"t10k-labels-idx1-ubyte.gz from https://github.com/zalandoresearch/fashion-mnist under {root}."
        ) from None
    return root / "FashionMNIST" / "raw"


def _read(path: Path, header: int) -> np.ndarray:
    """The uint8 array of an idx file whose header has `header` bytes. Raises DatasetError."""
    content = path.read_bytes()
    try:
        data = np.frombuffer(gzip.decompress(content), np.uint8)
        return data[header:].reshape(data[4:header].view(">u4").astype(int))
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise DatasetError(f"{path} is damaged: delete it and run again ({error})") from None


def load(root: Path) -> dict[str, Split]:
    """The splits; the files are downloaded to `root` where Debian's package is not installed. Raises DatasetError."""
    folder = _folder(root)
    splits = {}
    for split, stem in STEMS.items():
        images = _read(folder / f"{stem}-images-idx3-ubyte.gz", 16)
        labels = _read(folder / f"{stem}-labels-idx1-ubyte.gz", 8)
        if split == "train":
            chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in range(len(CLASSES))]))
            images, labels = images[chosen], labels[chosen]
        splits[split] = Split(list(images), labels.tolist(), CLASSES)
    return splits
