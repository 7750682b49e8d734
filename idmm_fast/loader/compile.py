"""Compile the loader's kernels ahead of time; they are kept on disk, so the first training does not wait for them."""

import tempfile
from pathlib import Path

import numpy as np

from ..beton import write_beton
from ..datasets import Split
from .crops import Views
from .loader import MultiCropLoader


def compile_kernels() -> None:
    """Compile all kernels that a loader uses, where they are not in numba's cache yet: about half a minute on one core.

    Raises:
        OSError: the temporary folder can't be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        split = Split([np.zeros((16, 16, 3), np.uint8)] * 2, [0, 0], ["a"])
        beton = write_beton(Path(folder) / "two.beton", split, dataset="compile", name="train", mode="raw", quiet=True)
        loader = MultiCropLoader(beton.path, 2, num_workers=1, views=[Views(1, 16)])
        next(iter(loader))
        loader.close()
