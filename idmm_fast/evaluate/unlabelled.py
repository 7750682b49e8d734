"""Whether pretraining learns, without labels: images that are found again by another crop, and RankMe."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from tqdm import tqdm

from ..beton import open_beton
from ..loader import Augment, MultiCropLoader, Views
from ..runtime.device import Runtime, prefetch_to_device

IMAGES = 1024  # at most: so many are compared with each other
SCALE = (0.2, 1.0)  # of the two crops, a fraction of the image's area
BATCH = 128


@torch.no_grad()
def unlabelled_metrics(
    network: nn.Module, path: str, size: int, runtime: Runtime, num_workers: int = 0
) -> dict[str, float]:
    """Compare the features of two crops of each image. The network is left in evaluation mode.

    Images and crops are the same at every call, so that the numbers of a run can be compared. torch's generator is not
    used.

    Args:
        network: from uint8 images (B, 3, S, S) to features (B, d), on the device of `runtime`.
        path: a `.beton` file; labels are not looked at.
        size: S, pixels.
        runtime: what the network runs on.
        num_workers: of the loader; 0: one a core.

    Returns:
        {"instance_top1", "rankme"}: percent of the images whose first crop has their own second crop as the nearest of
        all images' (cosine similarity); and see `rankme`, of the first crops. {} and a sentence where features are not
        finite.
    """
    network.eval()
    loader = MultiCropLoader(
        path,
        BATCH,
        num_workers,
        0,
        0.0,
        [Views(2, size, SCALE)],
        Augment(),
        shuffle=False,
        rows=_sample(path),
        epochs=1,
        on_error="replace",
    )
    firsts, seconds = [], []
    for ((pixels, _, _, _),) in prefetch_to_device(loader, runtime.device):
        with runtime.autocast():
            first, second = network(pixels).float().cpu().chunk(2)  # crop-major
        firsts.append(first)
        seconds.append(second)
    loader.close()
    first, second = torch.cat(firsts), torch.cat(seconds)
    if not (first.isfinite().all() and second.isfinite().all()):
        tqdm.write("features are not finite: there is no instance_top1 and no rankme", file=sys.stderr)
        return {}
    nearest = (normalize(first, dim=1) @ normalize(second, dim=1).T).argmax(1)
    found = (nearest == torch.arange(len(first))).float().mean()
    return {"instance_top1": 100 * float(found), "rankme": rankme(first)}


def rankme(features: torch.Tensor) -> float:
    """The effective rank of features: the exponential of the entropy of their singular values.

    Garrido et al., arXiv 2210.02885, equation 1. It is between 1 (all features on a line, or zero) and d.

    Args:
        features: float (n, d).
    """
    values = torch.linalg.svdvals(features.double())
    if not values.any():
        return 1.0
    share = values / values.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def _sample(path: str) -> np.ndarray:
    """The dataset rows that are compared, the same for every run on this file."""
    count = len(open_beton(path))
    return np.sort(np.random.default_rng(0).permutation(count)[:IMAGES])
