"""Top-1 and top-5 accuracy of a classifier over a beton."""

import numpy as np
import torch

from ..loader import evaluation_loader
from . import distributed
from .device import to_device


@torch.no_grad()
def top_k(model, path, labels, machine, batch_size, size, num_workers=0, ks=(1, 5)):
    """{"top1": ..., "top5": ...}, percent, of `model` (uint8 images -> logits) over the beton `path`, resized and centre-cropped to `size`.

    labels: int64 by dataset row. Several processes take their parts of the rows, and all get the result.
    """
    was_training = model.training
    model.eval()
    right = torch.zeros(len(ks), dtype=torch.int64, device=machine.device)
    rows = np.arange(distributed.rank(), labels.numel(), distributed.world())
    if rows.size:
        for ((images, rows_a, _, _),) in to_device(evaluation_loader(path, batch_size, size, num_workers, rows), machine.device):
            with machine.autocast():
                logits = model(images)
            wanted = labels.to(rows_a.device)[rows_a].unsqueeze(1)
            order = logits.float().topk(min(max(ks), logits.shape[1]), dim=1).indices
            right += torch.stack([(order[:, :k] == wanted).sum() for k in ks])
    model.train(was_training)
    return {f"top{k}": 100.0 * n / labels.numel() for k, n in zip(ks, distributed.total(right).tolist())}
