"""A picture of nearest neighbours: what the features think is alike."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from ..loader import evaluation_loader


def images_of(path, rows, size):
    """uint8 (n, size, size, 3): the images of these dataset rows, resized and centre-cropped."""
    rows = np.asarray(rows)
    (group,) = next(iter(evaluation_loader(path, rows.size, size, rows=rows)))
    return group.images.permute(0, 2, 3, 1).numpy()


def plot_neighbours(
    train_path, train, test_path, test, path, *, labels=None, rows=None, queries=8, k=8, size=96, seed=0
):
    """Write a PNG: a row for each query from the test set, then its `k` nearest training images by cosine similarity.

    train, test: features, float (n, d) and (m, d). rows: which dataset rows these are, (int64 (n,), int64 (m,)); None: all,
    in order. labels: (train labels, test labels, class names), by dataset row, for the titles, green where the class is the
    query's and red where not.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(test.shape[0], generator=generator)[:queries]
    k = min(k, train.shape[0])
    similarity, nearest = (normalize(test[chosen], dim=1) @ normalize(train, dim=1).T).topk(k, dim=1)
    if rows is not None:
        nearest, chosen = rows[0][nearest], rows[1][chosen]
    asked, found = images_of(test_path, chosen.numpy(), size), images_of(train_path, nearest.reshape(-1).numpy(), size)
    figure = Figure(figsize=(1.25 * (k + 1), 1.45 * len(chosen)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(chosen), k + 1, squeeze=False)
    for r in range(len(chosen)):
        for c in range(k + 1):
            axis = axes[r, c]
            axis.imshow(asked[r] if c == 0 else found[r * k + c - 1])
            axis.set_xticks([])
            axis.set_yticks([])
            if labels:
                train_labels, test_labels, names = labels
                mine = int(test_labels[chosen[r]])
                its = mine if c == 0 else int(train_labels[nearest[r, c - 1]])
                axis.set_title(
                    names[its], fontsize=7, color="black" if c == 0 else "tab:green" if its == mine else "tab:red"
                )
            if c:
                axis.set_xlabel(f"{similarity[r, c - 1]:.2f}", fontsize=6, labelpad=1)
    figure.suptitle(
        "Left: an image never seen. Right: its nearest training images (cosine similarity below)", fontsize=9
    )
    figure.savefig(path, dpi=110)
