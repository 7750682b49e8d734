"""Evaluation while pretraining: the features as they are now, by kNN and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..beton import open_beton
from ..config import ConfigError
from ..loader import ImageCache, open_cache
from ..models import Normalize, create_backbone
from ..runtime.device import Runtime, resolve_runtime
from .classes import labelled_rows, match_labels, warn_of_shared
from .frozen import evaluation_images, extract_both, linear_probe
from .knn import knn_accuracy


class OnlineEvaluation:
    """Evaluation of the features as they are now, for `pretrain`: kNN, and with online_eval.linear a linear probe.

    Args:
        cfg: a configuration of config.pretrain.SCHEMA.

    Raises:
        ConfigError: data.test is missing.
    """

    def __init__(self, cfg: Any) -> None:
        if cfg.online_eval.every and cfg.data.test is None:
            raise ConfigError("online_eval.every needs data.test, the .beton file whose images are classified")
        self.cfg = cfg
        self.caches: Sequence[ImageCache] = ()  # of (train, test)

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
        betons = open_beton(data.train), open_beton(data.test)
        warn_of_shared(*betons)
        every = labelled_rows(betons[0]), np.arange(len(betons[1]))
        minutes, epochs = self.cfg.training.minutes, self.cfg.training.epochs
        evaluations = 2 if minutes else -(-epochs // self.cfg.online_eval.every)
        train = open_cache(betons[0], None, data.cache, evaluations)  # that of the training, where it has one
        self.caches = train, open_cache(betons[1], None, data.cache, evaluations, beside=train.size)
        few = [_first(rows, beton.label[rows]) for rows, beton in zip(every, betons)]
        with torch.random.fork_rng(devices=[]):
            backbone = create_backbone(model.name, model.image_size, 0.0, model.options)
        runtime = resolve_runtime(self.cfg.training, 0)
        self._evaluate(runtime.to_device(backbone), runtime, few)

    def __call__(self, backbone: nn.Module, runtime: Runtime) -> dict[str, float]:
        """{"knn10", "knn20", and with online_eval.linear "linear"}, percent."""
        return self._evaluate(backbone, runtime)

    def _evaluate(
        self, backbone: nn.Module, runtime: Runtime, rows: Sequence[np.ndarray | None] | None = None
    ) -> dict[str, float]:
        betons = open_beton(self.cfg.data.train), open_beton(self.cfg.data.test)
        known, model = (betons[0].label, match_labels(*betons)), self.cfg.model
        images = evaluation_images(self.cfg, betons, rows=rows or (labelled_rows(betons[0]), None))
        images = [replace(own, cache=cache) for own, cache in zip(images, self.caches or (None, None))]
        normalize = Normalize(True, model.mean, model.std)
        features, found = extract_both(backbone, images, runtime, normalize)
        labels = [torch.from_numpy(all_labels)[own] for all_labels, own in zip(known, found)]
        results = knn_accuracy(features[0], labels[0], features[1], labels[1])
        return results | (linear_probe(features, labels) if self.cfg.online_eval.linear else {})


def _first(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first 8 of these rows, and the first one of another class; labels: of each."""
    return rows[np.unique([*range(min(8, len(rows))), (labels != labels[0]).argmax()])]
