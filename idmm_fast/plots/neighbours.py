"""A picture of nearest neighbours: which images the features call alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from ..loader import evaluation_loader
from .figure import new_figure, save_figure, shown_name


@dataclass(frozen=True)
class Side:
    """Images, and what is known of them.

    Attributes:
        path: a `.beton` file.
        features: float (n, d).
        rows: int64 (n,), the dataset rows of these features.
        labels: int, of every dataset row.
    """

    path: str | Path
    features: torch.Tensor
    rows: torch.Tensor
    labels: np.ndarray


def load_images(path: str | Path, rows: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """uint8 (n, size, size, 3): the images of these dataset rows, resized and cut out at the centre."""
    rows = np.asarray(rows)
    (group,) = next(iter(evaluation_loader(path, rows.size, size, rows=rows)))
    return group.images.permute(0, 2, 3, 1).numpy()


def plot_neighbours(
    train: Side, test: Side, path: str | Path, classes: Sequence[str], k: int = 8, size: int = 96, seed: int = 0
) -> None:
    """Write a PNG: a row for each of 8 test images, then its nearest training images by cosine similarity.

    Titles are green where the class is that of the test image, and red where not.

    Args:
        train: the training images.
        test: the test images.
        path: the file to write.
        classes: names of the classes.
        k: number of neighbours.
        size: of the images, in pixels.
        seed: of the choice of test images.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(test.features), generator=generator)[:8]
    k = min(k, len(train.features))
    queries, keys = normalize(test.features[chosen], dim=1), normalize(train.features, dim=1)
    similarity, nearest = (queries @ keys.T).topk(k, dim=1)
    nearest, chosen = train.rows[nearest], test.rows[chosen]
    query_images = load_images(test.path, chosen.numpy(), size)
    key_images = load_images(train.path, nearest.reshape(-1).numpy(), size)
    figure = new_figure(1.25 * (k + 1), 1.45 * len(chosen))
    axes = figure.subplots(len(chosen), k + 1, squeeze=False)
    for r, line in enumerate(axes):
        own = int(test.labels[chosen[r]])
        line[0].imshow(query_images[r])
        line[0].set_title(shown_name(classes[own]), fontsize=7)
        for c, axis in enumerate(line[1:]):
            label = int(train.labels[nearest[r, c]])
            axis.imshow(key_images[r * k + c])
            colour = "tab:green" if label == own else "tab:red"
            axis.set_title(shown_name(classes[label]), fontsize=7, color=colour)
            axis.set_xlabel(f"{similarity[r, c]:.2f}", fontsize=6, labelpad=1)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(
        "Left: a test image. Right: its nearest training images (cosine similarity below)",
        fontsize=9,
    )
    save_figure(figure, path)
