"""A picture of one augmented batch, with its CutMix boxes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..loader import MultiCropLoader
from .figure import new_figure, save_figure

_TITLE = "One batch: a row an image, a column a crop. "
_MIXED = "Red: the CutMix box. Below: rows outside | inside the box"
_PLAIN = "Below: the image's row"
_LETTERS_PER_INCH = 13  # of the title's font


def plot_batch(loader: MultiCropLoader, path: str | Path, epoch: int = 0, images: int = 6) -> None:
    """Write a PNG: a row for each of the first images of a batch, a column for each crop, CutMix boxes outlined.

    The crops are those that training sees in `epoch`; the batch is the one of its first twenty that is mixed most. The
    title of a column says which crop group it belongs to.

    Args:
        loader: the loader of the training images; it is left at the start of `epoch`.
        path: the file to write.
        epoch: number of the epoch.
        images: at most so many rows.
    """
    size = loader.local_rows(loader.indices, 0)[0].size
    step = _most_mixed_step(loader, epoch, size)
    loader.load_state_dict({"epoch": epoch, "step": step})
    iterator = iter(loader)
    batch = next(iterator)
    iterator.close()
    loader.set_epoch(epoch)
    rows, columns = min(images, size), sum(spec.count for spec in loader.views)
    width = max(1.5 * columns, 4.0)  # for the title
    mixes = loader.decoder.sample_cutmix(epoch, step, size)
    is_mixed = any((mix.lam < 1).any() for mix in mixes)
    title = textwrap.wrap(_TITLE + (_MIXED if is_mixed else _PLAIN), int(width * _LETTERS_PER_INCH))
    figure = new_figure(width, 1.5 * rows + 0.35 + 0.15 * len(title))
    axes = iter(figure.subplots(rows, columns, squeeze=False).T)
    for g, (spec, group, mix) in enumerate(zip(loader.views, batch, mixes)):
        for crop in range(spec.count):
            column, first = next(axes), crop * size
            for row, axis in enumerate(column, first):
                _plot_crop(axis, group.images[row], mix.box[row])
                inside = f" | {group.idx_b[row]}" if is_mixed else ""
                axis.set_xlabel(f"{group.idx_a[row]}{inside}", fontsize=7, labelpad=1)
            share = f"  λ={mix.lam[first]:.2f}" if is_mixed else ""
            column[0].set_title(f"{'ABCDEFGH'[g % 8]}{crop + 1}{share}", fontsize=9)
    figure.suptitle("\n".join(title), fontsize=9)
    save_figure(figure, path)


def _most_mixed_step(loader: MultiCropLoader, epoch: int, size: int) -> int:
    """The step, of the first twenty full ones, in which the crop group that is mixed least is mixed most."""
    full = max(1, min(20, loader.indices.size // loader.global_batch_len(0)))
    mixed = [min(1 - m.lam[0] for m in loader.decoder.sample_cutmix(epoch, step, size)) for step in range(full)]
    return int(np.argmax(mixed))


def _plot_crop(axis: Axes, pixels: torch.Tensor, box: np.ndarray) -> None:
    """Draw uint8 (3, H, W) and its CutMix box (top, left, bottom, right)."""
    axis.imshow(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    top, left, bottom, right = box
    if bottom > top and right > left:
        corner = left - 0.5, top - 0.5  # pixels are drawn around whole numbers
        frame = Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="red", linewidth=1.2)
        axis.add_patch(frame)
