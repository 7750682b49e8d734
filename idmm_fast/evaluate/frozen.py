"""Evaluation of frozen features: kNN, a linear probe and a picture, as `evaluate.py` and the demo ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..beton import Beton, open_beton
from ..config.evaluate import PROBE_MINUTES
from ..models import create_backbone, load_backbone
from ..plots.neighbours import Side, plot_neighbours
from ..runtime.device import Runtime, resolve_runtime
from .accuracy import check_same_classes
from .batches import EvaluationImages
from .features import extract
from .knn import knn_accuracy
from .linear import linear_accuracy


def evaluate_frozen(cfg: Any) -> dict[str, float]:
    """Evaluate the frozen features of cfg.model on data.test.

    Args:
        cfg: a configuration of config.evaluate.SCHEMA.

    Returns:
        {"knn10", "knn20", "linear"}, percent. No "linear" without linear.enabled, or where the probe takes too long.
        "images_skipped", their number, where damaged images were left out (data.on_error=replace).

    Raises:
        ConfigError, BetonError, FileNotFoundError, LoaderError, ValueError: see their sentences.
    """
    torch.manual_seed(cfg.training.seed)
    betons = train, test = open_beton(cfg.data.train), open_beton(cfg.data.test)
    check_same_classes(train, test)
    backbone = create_backbone(cfg.model.name, cfg.model.image_size, 0.0, cfg.model.options)
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init)
    runtime = resolve_runtime(cfg.training, 0)
    images = evaluation_images(cfg, betons, cfg.training.batch_size)
    features, rows = extract_both(runtime.to_device(backbone), images, runtime)
    labels = [torch.from_numpy(beton.label)[found] for beton, found in zip(betons, rows)]
    results = knn_accuracy(features[0], labels[0], features[1], labels[1], temperature=cfg.knn.temperature)
    if cfg.linear.enabled:
        results |= linear_probe(features, labels, cfg.linear.C, cfg.linear.max_minutes)
    skipped = len(train) + len(test) - sum(map(len, rows))
    if skipped:
        results["images_skipped"] = skipped
    if cfg.logging.run_dir is not None:
        folder = Path(cfg.logging.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sides = [Side(b.path, values, found, b.label) for b, values, found in zip(betons, features, rows)]
        size = max(cfg.model.image_size, 64)
        plot_neighbours(sides[0], sides[1], folder / "neighbours.png", train.classes, size=size, seed=cfg.training.seed)
    return results


def evaluation_images(
    cfg: Any, betons: Sequence[Beton], batch_size: int = 256, rows: Sequence[np.ndarray | None] = (None, None)
) -> list[EvaluationImages]:
    """The images of (train, test)."""
    size, data = cfg.model.image_size, cfg.data
    return [
        EvaluationImages(beton.path, size, batch_size, data.num_workers, own, data.on_error)
        for beton, own in zip(betons, rows)
    ]


def extract_both(
    backbone: nn.Module, images: Sequence[EvaluationImages], runtime: Runtime
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(features, dataset rows) of (train, test)."""
    features, rows = zip(*(extract(backbone, own, runtime) for own in images))
    return features, rows


def linear_probe(
    features: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    C: float = 1.0,
    minutes: float = PROBE_MINUTES,
) -> dict[str, float]:
    """{"linear": percent}, or {} and a message if the probe takes too long; features and labels of (train, test)."""
    accuracy = linear_accuracy(features[0], labels[0], features[1], labels[1], C, minutes)
    if accuracy is not None:
        return {"linear": accuracy}
    tqdm.write(
        f"the linear probe takes more than {minutes:g} minutes, so there is no number for it (linear.max_minutes)"
    )
    return {}
