"""The images that are evaluated: resized and cut out at the centre, in order, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..loader import ImageCache, LoaderError, MultiCropLoader, evaluation_loader
from ..runtime.device import Runtime, prefetch_to_device


@dataclass(frozen=True)
class EvaluationImages:
    """Which images are evaluated, and how they are loaded.

    Attributes:
        path: a `.beton` file.
        size: side of the images in pixels: they are resized, and the centre is cut out.
        batch_size: images at a time.
        num_workers: of the loader; 0: one a core.
        rows: dataset rows, int64 (n,); None: all.
        on_error: data.on_error. With "replace" damaged images are left out, since the replacement image of training has
            no place in an evaluation.
        cache: what is kept of decoded images, for those that are evaluated again and again; None: nothing.
    """

    path: str | Path
    size: int
    batch_size: int = 256
    num_workers: int = 0
    rows: np.ndarray | None = None
    on_error: str = "raise"
    cache: ImageCache | None = None


def evaluation_batches(
    images: EvaluationImages, runtime: Runtime
) -> tuple[MultiCropLoader, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """(the loader; the batches on the device: uint8 (B, 3, S, S), and the dataset rows of these images, int64 (B,))."""
    on_error = "skip" if images.on_error == "replace" else images.on_error
    loader = evaluation_loader(
        images.path,
        images.batch_size,
        images.size,
        images.num_workers,
        images.rows,
        on_error=on_error,
        cache=images.cache,
    )

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for ((pixels, idx, _, _),) in prefetch_to_device(loader, runtime.device):
            if idx.numel():
                yield pixels, idx

    return loader, batches()


def report_skipped(path: str | Path, skipped: int, count: int) -> None:
    """Say how many of `count` images were left out.

    Raises:
        LoaderError: all of them were.
    """
    if skipped == count:
        raise LoaderError(
            f"none of the {count} images of {path} can be decoded. Convert it again with idmm-fast convert."
        )
    if skipped:
        tqdm.write(f"{path}: {skipped} of {count} images can't be decoded and are left out of the evaluation")
