"""Top-1 and top-5 accuracy of a classifier over a beton; which images and labels can be judged at all."""

import numpy as np
import torch
from tqdm import tqdm

from ..beton import BetonError
from ..loader import LoaderError, evaluation_loader
from ..runtime import distributed
from ..runtime.device import to_device


def check_same_classes(train, test):
    """Raise BetonError unless all images of the betons `train` and `test` (beton.Beton) have labels, and the same number
    means the same class in both, where both have the names of their classes."""
    for beton in (train, test):
        missing = int((beton.label < 0).sum())
        if missing:
            raise BetonError(
                f"{missing} of {len(beton)} images of {beton.path} have no label; judging and fine-tuning need them"
            )
    first, second = (beton.sidecar.get("classes") for beton in (train, test))
    if first is None or second is None or first == second:
        return
    k = next((k for k, names in enumerate(zip(first, second)) if names[0] != names[1]), min(len(first), len(second)))
    named = [repr(names[k]) if k < len(names) else "none" for names in (first, second)]
    raise BetonError(
        f"{train.path} has {len(first)} classes and {test.path} has {len(second)}, not the same ones: number {k} is {named[0]} "
        f"in the first and {named[1]} in the second. Convert both at once: a folder with train/CLASS and test/CLASS."
    )


def judged(path, batch_size, size, machine, num_workers=0, rows=None, on_error="raise"):
    """(loader, iterator of (uint8 images, their dataset rows) on the device) over the beton `path`, resized and
    centre-cropped to `size`. on_error: data.on_error; with "replace" damaged rows are left out, since what stands in for
    one in training has no place in a judgement."""
    on_error = "skip" if on_error == "replace" else on_error
    loader = evaluation_loader(path, batch_size, size, num_workers, rows, on_error=on_error)

    def batches():
        for ((images, idx, _, _),) in to_device(loader, machine.device):
            if idx.numel():
                yield images, idx

    return loader, batches()


def say_skipped(path, skipped, images):
    """Say how many images were left out; raise LoaderError if that is all of them."""
    if skipped == images:
        raise LoaderError(
            f"none of the {images} images of {path} can be decoded. Convert it again with write_datasets.py."
        )
    if skipped:
        tqdm.write(f"{path}: {skipped} of {images} images can't be decoded and are left out of the judgement")


@torch.no_grad()
def top_k(model, path, labels, machine, batch_size, size, num_workers=0, ks=(1, 5), on_error="raise"):
    """{"top1": ..., "top5": ...}, percent, of `model` (uint8 images -> logits) over the beton `path`, see `judged`; where
    images were left out of it, their number too, "images_skipped".

    labels: int64 by dataset row. Several processes take their parts of the rows, and all get the result. Raises LoaderError.
    """
    was_training = model.training
    model.eval()
    right = torch.zeros(len(ks) + 1, dtype=torch.int64, device=machine.device)  # the last one: images seen
    rows = np.arange(distributed.rank(), labels.numel(), distributed.world())
    if rows.size:
        for images, idx in judged(path, batch_size, size, machine, num_workers, rows, on_error)[1]:
            with machine.autocast():
                logits = model(images)
            wanted = labels.to(idx.device)[idx].unsqueeze(1)
            order = logits.float().topk(min(max(ks), logits.shape[1]), dim=1).indices
            right += torch.stack(
                [*((order[:, :k] == wanted).sum() for k in ks), torch.tensor(len(idx), device=right.device)]
            )
    model.train(was_training)
    *right, seen = distributed.total(right).tolist()
    skipped = labels.numel() - seen
    if distributed.rank() == 0 or not seen:
        say_skipped(path, skipped, labels.numel())
    return {f"top{k}": 100.0 * n / seen for k, n in zip(ks, right)} | ({"images_skipped": skipped} if skipped else {})
