"""Features of the images of a file under a frozen backbone."""

from __future__ import annotations

import torch
from torch import nn
from tqdm import tqdm

from ..models import Normalize
from ..runtime.device import Runtime
from .batches import EvaluationImages, evaluation_batches, report_skipped


@torch.no_grad()
def extract(
    backbone: nn.Module, images: EvaluationImages, runtime: Runtime, normalize: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Extract features. The backbone is left in evaluation mode.

    Args:
        backbone: from normalised images (B, 3, S, S) to features (B, d), on the device of `runtime`.
        images: which images.
        runtime: what the backbone runs on.
        normalize: how images are normalised; None: as pretraining does.

    Returns:
        (float32 (n, d) on the CPU; int64 (n,), the dataset rows of these images: all that were asked for, in order,
        but for damaged ones with images.on_error "replace").

    Raises:
        LoaderError: an image is damaged and images.on_error is "raise", or all are.
    """
    backbone.eval()
    normalize = runtime.to_device(normalize or Normalize(pretraining=True))
    features, found = [], []
    loader, batches = evaluation_batches(images, runtime)
    count = loader.indices.size
    with tqdm(total=count, desc=f"features of {images.path}", unit="img", leave=False, disable=None) as bar:
        for pixels, idx in batches:
            with runtime.autocast():
                features.append(backbone(normalize(pixels)).float().cpu())
            found.append(idx.cpu())
            bar.update(pixels.shape[0])
    rows = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    report_skipped(images.path, count - rows.numel(), count)
    return torch.cat(features), rows
