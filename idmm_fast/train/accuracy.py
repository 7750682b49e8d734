"""Top-1 and top-5 accuracy of a classifier over a loader."""

import torch

from .device import to_device


@torch.no_grad()
def top_k(model, loader, labels, machine, ks=(1, 5)):
    """{"top1": ..., "top5": ...}, percent, of `model` (uint8 images -> logits) over `loader`; `labels` int64 by dataset row."""
    was_training = model.training
    model.eval()
    right, count = dict.fromkeys(ks, 0), 0
    for ((images, rows, _, _),) in to_device(loader, machine.device):
        with machine.autocast():
            logits = model(images)
        wanted = labels.to(rows.device)[rows].unsqueeze(1)
        order = logits.float().topk(min(max(ks), logits.shape[1]), dim=1).indices
        for k in ks:
            right[k] += (order[:, :k] == wanted).sum()
        count += rows.numel()
    model.train(was_training)
    return {f"top{k}": 100.0 * float(right[k]) / count for k in ks}
