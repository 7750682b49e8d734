"""Pictures of a classifier's errors: its confusion matrix, and images that it is wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .figure import new_figure, save_figure, shown_name
from .neighbours import load_images


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Write a PNG of a confusion matrix, each row in percent of its images.

    Args:
        counts: int (classes, classes): row the true class, column the predicted one.
        names: of the classes.
        path: the file to write.
    """
    count = len(names)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, 1.5 + 0.28 * count)
    figure = new_figure(side, side)
    axis = figure.subplots()
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    shown = [shown_name(name) for name in names]
    axis.set_xticks(range(count), shown, rotation=90, fontsize=7)
    axis.set_yticks(range(count), shown, fontsize=7)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if count <= 25:
        for row, line in enumerate(percent):
            for column, value in enumerate(line):
                if value:
                    colour = "white" if value > 50 else "black"
                    axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, path)


def plot_mistakes(
    beton: str | Path, rows: Sequence[int] | np.ndarray, titles: Sequence[str], path: str | Path, size: int
) -> None:
    """Write a PNG of images with a title each, 8 side by side.

    Args:
        beton: a `.beton` file.
        rows: dataset rows.
        titles: one for each of them.
        path: the file to write.
        size: of the images, pixels.
    """
    lines = -(-len(rows) // 8)
    figure = new_figure(12, 1.85 * lines)
    axes = figure.subplots(lines, 8, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, load_images(beton, rows, size), titles):
        axis.imshow(image)
        axis.set_title("\n".join(map(shown_name, title.split("\n"))), fontsize=6)
    save_figure(figure, path)
