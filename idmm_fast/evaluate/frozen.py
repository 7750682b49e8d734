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
from ..config import ConfigError
from ..config.evaluate import MINUTES
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
    if cfg.data.test is None:
        raise ConfigError("data.test is required: the beton whose images are classified")
    torch.manual_seed(cfg.training.seed)
    betons = train, test = open_beton(cfg.data.train), open_beton(cfg.data.test)
    check_same_classes(train, test)
    backbone = create_backbone(cfg.model.name, cfg.model.image_size, 0.0, cfg.model.options)
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init)
    runtime = resolve_runtime(cfg.training, 0)
    images = _images(cfg, betons, cfg.training.batch_size)
    features, rows = _extract_both(runtime.to_device(backbone), images, runtime)
    labels = [torch.from_numpy(beton.label)[found] for beton, found in zip(betons, rows)]
    results = knn_accuracy(features[0], labels[0], features[1], labels[1], temperature=cfg.knn.temperature)
    if cfg.linear.enabled:
        results |= _linear_probe(features, labels, cfg.linear.C, cfg.linear.max_minutes)
    skipped = len(train) + len(test) - sum(map(len, rows))
    if skipped:
        results["images_skipped"] = skipped
    if cfg.logging.run_dir is not None:
        folder = Path(cfg.logging.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sides = [Side(b.path, values, found, b.label) for b, values, found in zip(betons, features, rows)]
        size = max(cfg.model.image_size, 64)
        plot_neighbours(*sides, folder / "neighbours.png", train.classes, size=size, seed=cfg.training.seed)
    return results


class OnlineEvaluation:
    """Evaluation of the features as they are now, for `pretrain`: kNN, and with online_eval.linear a linear probe.

    Args:
        cfg: a configuration of config.pretrain.SCHEMA.

    Raises:
        ConfigError: data.test is missing.
    """

    def __init__(self, cfg: Any):
        if cfg.online_eval.every and cfg.data.test is None:
            raise ConfigError("online_eval.every needs data.test, the beton whose images are classified")
        self.cfg = cfg

    def check(self) -> None:
        """Do before training what could fail after hours of it.

        Both files are opened and compared, and a few images of each evaluated by a backbone with random weights.
        torch's generator is left as it is.

        Raises:
            ConfigError, BetonError, FileNotFoundError, LoaderError, ValueError: see their sentences.
        """
        if not self.cfg.online_eval.every:
            return
        model, data = self.cfg.model, self.cfg.data
        labels = [open_beton(path).label for path in (data.train, data.test)]
        if self.cfg.online_eval.linear and (labels[0] == labels[0][0]).all():
            raise ConfigError(f"online_eval.linear needs images of two classes; those of {data.train} are all of one")
        # The first 8, and the first image of another class.
        few = [np.unique([*range(min(8, len(own))), (own != own[0]).argmax()]) for own in labels]
        with torch.random.fork_rng(devices=[]):
            backbone = create_backbone(model.name, model.image_size, 0.0, model.options)
        runtime = resolve_runtime(self.cfg.training, 0)
        self._evaluate(runtime.to_device(backbone), runtime, few)

    def __call__(self, backbone: nn.Module, runtime: Runtime) -> dict[str, float]:
        """{"knn10", "knn20", and with online_eval.linear "linear"}, percent."""
        return self._evaluate(backbone, runtime)

    def _evaluate(
        self, backbone: nn.Module, runtime: Runtime, rows: Sequence[np.ndarray | None] = (None, None)
    ) -> dict[str, float]:
        betons = open_beton(self.cfg.data.train), open_beton(self.cfg.data.test)
        check_same_classes(*betons)
        features, found = _extract_both(backbone, _images(self.cfg, betons, rows=rows), runtime)
        labels = [torch.from_numpy(beton.label)[own] for beton, own in zip(betons, found)]
        results = knn_accuracy(features[0], labels[0], features[1], labels[1])
        return results | (_linear_probe(features, labels) if self.cfg.online_eval.linear else {})


def _images(
    cfg: Any, betons: Sequence[Beton], batch_size: int = 256, rows: Sequence[np.ndarray | None] = (None, None)
) -> list[EvaluationImages]:
    """The images of (train, test)."""
    size, data = cfg.model.image_size, cfg.data
    return [
        EvaluationImages(beton.path, size, batch_size, data.num_workers, own, data.on_error)
        for beton, own in zip(betons, rows)
    ]


def _extract_both(
    backbone: nn.Module, images: Sequence[EvaluationImages], runtime: Runtime
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(features, dataset rows) of (train, test)."""
    features, rows = zip(*(extract(backbone, own, runtime) for own in images))
    return features, rows


def _linear_probe(
    features: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], C: float = 1.0, minutes: float = MINUTES
) -> dict[str, float]:
    """{"linear": percent}, or {} and a message if the probe takes too long; features and labels of (train, test)."""
    accuracy = linear_accuracy(features[0], labels[0], features[1], labels[1], C, minutes)
    if accuracy is not None:
        return {"linear": accuracy}
    tqdm.write(
        f"the linear probe takes more than {minutes:g} minutes, so there is no number for it (linear.max_minutes)"
    )
    return {}
