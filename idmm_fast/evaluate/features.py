"""Features of a whole beton under a frozen backbone."""

import torch
from tqdm import tqdm

from ..loader import evaluation_loader
from ..models import Normalize
from ..models.backbone import PRETRAIN_STD
from ..train.device import to_device


@torch.no_grad()
def extract(backbone, path, size, machine, batch_size=256, num_workers=0, rows=None):
    """float32 (n, d) on the CPU: the features of the images of `path` in order, resized and centre-cropped to `size`."""
    backbone.eval()
    normalize = machine.place(Normalize(std=PRETRAIN_STD))
    loader = evaluation_loader(path, batch_size, size, num_workers, rows)
    features = []
    with tqdm(total=loader.indices.size, desc=f"features of {path}", unit="img", leave=False, disable=None) as bar:
        for ((images, _, _, _),) in to_device(loader, machine.device):
            with machine.autocast():
                features.append(backbone(normalize(images)).float().cpu())
            bar.update(images.shape[0])
    return torch.cat(features)
