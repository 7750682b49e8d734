"""Top-1 and top-5 accuracy of a classifier; and whether two datasets have the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..beton import Beton, BetonError
from ..runtime import distributed
from ..runtime.device import Runtime
from .batches import EvaluationImages, evaluation_batches, report_skipped


def check_same_classes(train: Beton, test: Beton) -> None:
    """Check that all images have labels, and that a label means the same class in both files.

    Classes are compared where both files have the names of theirs.

    Raises:
        BetonError: the message names the file, or the first class that differs.
    """
    for beton in (train, test):
        missing = int((beton.label < 0).sum())
        if missing:
            raise BetonError(
                f"{missing} of {len(beton)} images of {beton.path} have no label; evaluation and fine-tuning need them"
            )
    first, second = (beton.sidecar.get("classes") for beton in (train, test))
    if first is None or second is None or first == second:
        return
    k = next((k for k, names in enumerate(zip(first, second)) if names[0] != names[1]), min(len(first), len(second)))
    named = [repr(names[k]) if k < len(names) else "none" for names in (first, second)]
    raise BetonError(
        f"{train.path} has {len(first)} classes and {test.path} has {len(second)}, not the same ones: number {k} is "
        f"{named[0]} in the first and {named[1]} in the second. Convert both at once: a folder with train/CLASS and "
        f"test/CLASS."
    )


@torch.no_grad()
def top_k(
    model: nn.Module,
    images: EvaluationImages,
    labels: torch.Tensor,
    runtime: Runtime,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """The accuracy of a classifier. Several processes take a part of the images each, and all get the result.

    Args:
        model: from uint8 images (B, 3, S, S) to logits (B, classes); its mode (training or not) is kept.
        images: all images of a file; `rows` is not looked at.
        labels: int64 (n,), by dataset row.
        runtime: what the model runs on.
        ks: a prediction is right if the class is among the k largest logits.

    Returns:
        {"top1": ..., "top5": ...}, percent; and "images_skipped", their number, where images were left out.

    Raises:
        LoaderError: an image is damaged and images.on_error is "raise", or all are.
    """
    was_training = model.training
    model.eval()
    counts = torch.zeros(len(ks) + 1, dtype=torch.int64, device=runtime.device)  # right ones of each k; images seen
    rows = np.arange(distributed.rank(), labels.numel(), distributed.world())
    if rows.size:
        for pixels, idx in evaluation_batches(replace(images, rows=rows), runtime)[1]:
            with runtime.autocast():
                logits = model(pixels)
            wanted = labels.to(idx.device)[idx].unsqueeze(1)
            order = logits.float().topk(min(max(ks), logits.shape[1]), dim=1).indices
            right = [(order[:, :k] == wanted).sum() for k in ks]
            counts += torch.stack([*right, torch.tensor(len(idx), device=counts.device)])
    model.train(was_training)
    *right, seen = distributed.all_reduce_sum(counts).tolist()
    skipped = labels.numel() - seen
    if distributed.rank() == 0 or not seen:
        report_skipped(images.path, skipped, labels.numel())
    return {f"top{k}": 100.0 * n / seen for k, n in zip(ks, right)} | ({"images_skipped": skipped} if skipped else {})
