"""The classifier of a fine-tuning on any beton, with a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..beton import Beton, BetonError, open_beton
from ..config import find_run_config, read_run_config
from ..convert import shown_stem
from ..models import load_trained
from ..runtime.device import choose_attention, resolve_runtime
from .batches import EvaluationImages
from .classification import classify, measure, write_report


def evaluate_classifier(cfg: Any) -> dict[str, Any] | None:
    """Evaluate the classifier of model.init on data.test; with logging.run_dir write a report.

    Args:
        cfg: a configuration of config.evaluate.SCHEMA.

    Returns:
        See `measure`; "folder", that of the report, or None; and "trained_on", see `count_trained_on`. None where
        model.init has no classifier.

    Raises:
        BetonError: images have no label, or are of classes that the classifier does not know.
        LoaderError, ValueError: see their sentences.
    """
    init = cfg.model.init
    if init is None or find_run_config(init) is None:
        return None
    trained = load_trained(init, cfg.model.image_size)
    if not trained.label_names:
        return None
    test, runtime = open_beton(cfg.data.test), resolve_runtime(cfg.training, 0)
    labels = labels_by_name(test, trained.label_names)
    network = runtime.to_device(trained.network)
    choose_attention(network, runtime)
    images = EvaluationImages(
        test.path, trained.size, cfg.training.batch_size, cfg.data.num_workers, on_error=cfg.data.on_error
    )
    found = classify(network, images, labels, trained.label_names, runtime)
    trained_on = {"trained_on": count_trained_on(test, init)}
    if cfg.logging.run_dir is None:
        return measure(found) | trained_on | {"folder": None}
    name = shown_stem(test.path)
    folder = Path(cfg.logging.run_dir) / f"report_{name}"
    return write_report(found, images, folder, f"{init} on {name}") | trained_on | {"folder": str(folder)}


def count_trained_on(test: Beton, run: str | Path) -> int:
    """How many of these images are in the data.train of a run, byte for byte; 0 where that file is gone."""
    train = read_run_config(run).get("data", {}).get("train")
    return test.count_shared(open_beton(train)) if train and Path(train).is_file() else 0


def labels_by_name(beton: Beton, names: Sequence[str]) -> np.ndarray:
    """The labels of a file in the numbers of a classifier, by the names of the classes where the file has them.

    Args:
        beton: the images.
        names: the classes of the classifier.

    Raises:
        BetonError: images have no label, or are of classes that are not among `names`.
    """
    if (beton.label < 0).any():
        raise BetonError(f"{int((beton.label < 0).sum())} of {len(beton)} images of {beton.path} have no label")
    number = {name: k for k, name in enumerate(names)}
    theirs = beton.sidecar.get("classes") or list(names)
    known = np.array([number.get(name, -1) for name in theirs] + [-1])
    labels = known[np.minimum(beton.label, len(theirs))]
    if (labels < 0).any():
        first = int(beton.label[labels < 0][0])
        raise BetonError(
            f"{int((labels < 0).sum())} images of {beton.path} are of classes that the classifier does not know, first "
            f"{repr(theirs[first]) if first < len(theirs) else first}"
        )
    return labels
