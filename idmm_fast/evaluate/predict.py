"""The classes of image files under a fine-tuned network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..beton import printable
from ..config import ConfigError
from ..datasets.image_files import LeftOut, image_files
from ..loader.image_files import ImageFiles
from ..models import load_trained
from ..runtime.device import Runtime, choose_attention


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of image files.

    Attributes:
        files: the n files.
        label_names: the classes.
        labels: int64 (n, k), the k likeliest classes of each file, the likeliest first; -1 for a damaged one.
        probabilities: float32 (n, k), theirs; NaN for a damaged one.
        damaged: {number of a file: why it could not be read}.
    """

    files: list[str]
    label_names: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    damaged: dict[int, str]


@dataclass(frozen=True)
class PredictOptions:
    """How files are predicted.

    Attributes:
        topk: how many classes are given for each, at least 1.
        flip: whether the probabilities are the mean of those of the image and of its mirror image.
        device: "auto", "cpu" or "cuda".
        batch_size: images at a time.
        num_workers: threads that read images; 0: one a core.
    """

    topk: int = 5
    flip: bool = False
    device: str = "auto"
    batch_size: int = 256
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("topk", 1), ("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is at least {least}, not {getattr(self, name)}")


def predict_files(checkpoint: str | Path, paths: Iterable[str | Path], options: PredictOptions) -> Predictions:
    """Predict the classes of image files, with the pixels and the precision of the run's own evaluation.

    Args:
        checkpoint: the run folder of a fine-tuning, or a checkpoint in it.
        paths: files, and folders whose images are taken, those in folders below too.
        options: how.

    Raises:
        ConfigError: there is no image, none can be read, or the run has no classifier.
        ValueError: the weights can't be read.
    """
    files = find_images(paths)
    trained = load_trained(checkpoint)
    if not trained.label_names:
        raise ConfigError(
            f"{checkpoint} has no classifier: it is a pretraining, or a fine-tuning that has not ended. Fine-tune it "
            f"(idmm-fast finetune --init), or name a checkpoint of the fine-tuning"
        )
    runtime = trained.runtime(options.device)
    network = runtime.to_device(trained.network)
    choose_attention(network, runtime)
    images = ImageFiles(files, trained.size, options.batch_size, options.num_workers)
    labels, probabilities = _predict(network, images, runtime, min(options.topk, len(trained.label_names)), options)
    if len(images.damaged) == len(files):
        raise ConfigError(f"none of the {len(files)} images can be read; first: {files[0]}: {images.damaged[0]}")
    names = [os.fspath(file) for file in files]
    return Predictions(names, trained.label_names, labels, probabilities, images.damaged)


@torch.no_grad()
def _predict(
    network: nn.Module, images: ImageFiles, runtime: Runtime, k: int, options: PredictOptions
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, probabilities) as in Predictions."""
    count = len(images.sources)
    labels, probabilities = np.full((count, k), -1), np.full((count, k), np.nan, np.float32)
    with tqdm(total=count, desc="predict", unit="img", leave=False, disable=None) as bar:
        for pixels, numbers in images:
            if numbers.size:
                on_device = pixels.to(runtime.device, non_blocking=True)
                with runtime.autocast():
                    outputs = [network(on_device)]
                    if options.flip:
                        outputs.append(network(on_device.flip(-1)))
                mean = torch.stack([output.float().softmax(1) for output in outputs]).mean(0)
                top = mean.topk(k, dim=1)
                labels[numbers], probabilities[numbers] = top.indices.cpu().numpy(), top.values.cpu().numpy()
            bar.update(min(images.batch_size, count - bar.n))
    return labels, probabilities


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The images that `paths` name, each once: files as they are named, and all images below folders.

    What is left out of a folder, and why, is said.

    Raises:
        ConfigError: a path does not exist, or there is no image.
    """
    found: list[Path] = []
    left_out = LeftOut()
    named = [Path(path) for path in paths]
    for path in named:
        if not path.exists():
            raise ConfigError(f"{printable(path)} does not exist; name images, or folders of them")
        found += image_files(path, left_out) if path.is_dir() else [path]
    for entry in left_out.listing():
        tqdm.write(printable(f"left out: {entry['count']} {entry['reason']}, first: {entry['first']}"))
    if not found:
        raise ConfigError(f"there is no image in {', '.join(map(printable, named))}")
    return list(dict.fromkeys(found))
