"""Compile the kernels ahead of time; they are kept on disk, so no conversion or training waits for them."""

import tempfile
from pathlib import Path

from PIL import Image

from ..beton import write_beton
from ..datasets import Split
from .crops import Views
from .loader import MultiCropLoader


def compile_kernels() -> None:
    """Compile what is not in numba's cache yet, by a small conversion and a batch: about a minute on one core.

    Raises:
        OSError: the temporary folder can't be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        image, out = Path(folder) / "image.jpg", Path(folder) / "out.beton"
        Image.new("RGB", (32, 32)).save(image)
        split = Split([image, image], [0, 0], ["a"])
        for limit in (16, None):  # made smaller, and kept as it is
            write_beton(out, split, dataset="compile", name="train", mode="jpg", max_resolution=limit, quiet=True)
        for spread in (1, 2):
            loader = MultiCropLoader(out, 2, num_workers=1, views=[Views(1, 16)], spread=spread)
            next(iter(loader))
            loader.decoder.sample_crops(0, [0])
            loader.close()
