"""The images that benchmarks read: a user's, or crops of the two photographs that come with scikit-learn."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..beton import open_beton, write_beton
from ..beton.read import Beton
from ..datasets import Split, folder


def sample_photographs(count: int = 256) -> list[bytes]:
    """`count` JPEGs of 500 x 375 pixels, quality 90, windows of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    rng, sources = np.random.default_rng(0), load_sample_images().images
    result = []
    for k in range(count):
        source = sources[k % 2]
        top, left = rng.integers(0, source.shape[0] - 375), rng.integers(0, source.shape[1] - 500)
        buffer = io.BytesIO()
        Image.fromarray(source[top : top + 375, left : left + 500]).save(buffer, "JPEG", quality=90)
        result.append(buffer.getvalue())
    return result


def open_betons(args: argparse.Namespace, scratch: Path | str) -> tuple[Beton, Beton]:
    """A beton of JPEGs, and one of the same images as pixels.

    Args:
        args: `beton`, a file; else `images`, a tree of JPEGs, of which the first split is read; else made ones.
            `limit`: how many at most.
        scratch: A folder for what is written.

    Raises:
        ValueError: The beton holds raw pixels.
        BetonError, DatasetError, FileNotFoundError: There are no such images.
    """
    if args.beton:
        jpg = open_beton(args.beton)
        if (jpg.mode != 0).any():
            raise ValueError(f"{jpg.path} holds raw pixels; the benchmark needs JPEGs (idmm-fast convert --mode jpg)")
        images: Sequence = [bytes(jpg.bytes[p : p + n]) for p, n in zip(jpg.ptr[: args.limit], jpg.length)]
    else:
        splits = folder.load(args.images) if args.images else {}
        loaded = next(iter(splits.values())).images if splits else sample_photographs(args.limit)
        images = loaded[: args.limit]
        jpg = open_beton(_write(images, scratch, "jpg"))
    return jpg, open_beton(_write(images, scratch, "raw"))


def _write(images: Sequence, scratch: Path | str, mode: str) -> Path:
    """A beton of these images, all of one class."""
    split = Split(images, [0] * len(images), ["all"])
    return write_beton(Path(scratch) / f"{mode}.beton", split, dataset="bench", name="train", mode=mode).path
