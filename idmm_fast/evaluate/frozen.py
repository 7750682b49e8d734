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
from ..config import replace
from ..config.evaluate import PROBE_MINUTES, SCHEMA
from ..models import Normalize, create_backbone, load_backbone, resolve_normalization
from ..plots.neighbours import Side, plot_neighbours
from ..runtime.device import Runtime, resolve_runtime
from .batches import EvaluationImages
from .classes import class_names, labelled_rows, match_labels, warn_of_shared
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
    known = train.label, match_labels(train, test)
    warn_of_shared(train, test)
    cfg = replace(SCHEMA, cfg, resolve_normalization(cfg.model))
    backbone = create_backbone(cfg.model.name, cfg.model.image_size, 0.0, cfg.model.options)
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init)
    runtime = resolve_runtime(cfg.training, 0)
    labelled = labelled_rows(train)
    if len(labelled) < len(train):
        tqdm.write(f"{len(train) - len(labelled)} of {len(train)} images of {train.path} have no label: left out")
    images = evaluation_images(cfg, betons, cfg.training.batch_size, (labelled, None))
    normalize = Normalize(True, cfg.model.mean, cfg.model.std)
    features, rows = extract_both(runtime.to_device(backbone), images, runtime, normalize)
    labels = [torch.from_numpy(own)[found] for own, found in zip(known, rows)]
    results = knn_accuracy(features[0], labels[0], features[1], labels[1], temperature=cfg.knn.temperature)
    if cfg.linear.enabled:
        results |= linear_probe(features, labels, cfg.linear.C, cfg.linear.max_minutes)
    skipped = len(labelled) + len(test) - sum(map(len, rows))
    if skipped:
        results["images_skipped"] = skipped
    if cfg.logging.run_dir is not None:
        folder = Path(cfg.logging.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sides = [Side(b.path, *of_it) for b, of_it in zip(betons, zip(features, rows, known))]
        size, names = max(cfg.model.image_size, 64), class_names(train, test)
        plot_neighbours(sides[0], sides[1], folder / "neighbours.png", names, size=size, seed=cfg.training.seed)
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
    backbone: nn.Module, images: Sequence[EvaluationImages], runtime: Runtime, normalize: Normalize | None = None
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(features, dataset rows) of (train, test)."""
    features, rows = zip(*(extract(backbone, own, runtime, normalize) for own in images))
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
