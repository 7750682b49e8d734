"""Features of a whole beton under a frozen backbone."""

import torch
from tqdm import tqdm

from ..models import Normalize
from ..models.backbone import PRETRAIN_STD
from .accuracy import judged, say_skipped


@torch.no_grad()
def extract(backbone, path, size, machine, batch_size=256, num_workers=0, rows=None, on_error="raise"):
    """(float32 (n, d) on the CPU, int64 (n,)): the features of the images of `path`, resized and centre-cropped to `size`,
    and which rows these are: all or `rows`, in order, but for damaged ones with on_error="replace" (data.on_error).

    Raises LoaderError where one is damaged and on_error is "raise", or where all are.
    """
    backbone.eval()
    normalize = machine.place(Normalize(std=PRETRAIN_STD))
    features, found = [], []
    loader, batches = judged(path, batch_size, size, machine, num_workers, rows, on_error)
    with tqdm(total=loader.indices.size, desc=f"features of {path}", unit="img", leave=False, disable=None) as bar:
        for images, idx in batches:
            with machine.autocast():
                features.append(backbone(normalize(images)).float().cpu())
            found.append(idx.cpu())
            bar.update(images.shape[0])
    found = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    say_skipped(path, loader.indices.size - found.numel(), loader.indices.size)
    return torch.cat(features), found
