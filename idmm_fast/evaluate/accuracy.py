"""Top-1 and top-5 accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..runtime import distributed
from ..runtime.device import Runtime
from .batches import EvaluationImages, evaluation_batches, report_skipped


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
