"""Cross-validation of a fine-tuning: each fold is tested once by a network that was trained on the others."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from ..beton import open_beton
from ..beton.subset import write_subset
from ..config import ConfigError, replace
from ..config.finetune import SCHEMA
from ..convert import list_files, listed_files
from ..files import write_json
from ..runtime import distributed
from .finetuning import finetune


def run_folds(cfg: SimpleNamespace, count: int) -> dict[str, Any]:
    """Fine-tune once for each fold of data.train; data.test and data.val are not read.

    Fold k trains in the folder fold_k of the run folder, where its two betons are too. Called again, it resumes in the
    fold where it was stopped.

    Args:
        cfg: a configuration of config.finetune.SCHEMA.
        count: number of folds, at least 2; each class is spread over them.

    Returns:
        {"top1", "top1_std", "top5", "top5_std", "folds"}: mean and sample standard deviation over the folds, percent,
        and what `finetune` returns for each; result.json in the run folder holds it too.

    Raises:
        ConfigError: there are too few images of a class, or training.max_steps or training.patience is set.
        And what `finetune` raises.
    """
    if cfg.training.max_steps:
        raise ConfigError("training.max_steps does not go with --folds: a dry run has no accuracy")
    if cfg.training.patience:
        raise ConfigError("training.patience does not go with --folds: a fold has no validation split to stop by")
    folder, labels = Path(cfg.logging.run_dir), open_beton(cfg.data.train).label
    rows = np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[rows])
    fewest = int(counts[counts > 0].min()) if counts.size else 0
    if not 2 <= count <= fewest:
        raise ConfigError(
            f"--folds {count}: it is at least 2, and at most the number of images of the smallest class, {fewest}"
        )
    folds = StratifiedKFold(count, shuffle=True, random_state=cfg.training.seed % 2**32)
    results = []
    with distributed.process_group(cfg.training.device):
        for k, (train, test) in enumerate(folds.split(rows, labels[rows]), 1):
            own = folder / f"fold_{k}"
            distributed.broadcast_from_main(functools.partial(_write, cfg.data.train, own, rows[train], rows[test]))
            changes = {
                "data.train": str(own / "train.beton"),
                "data.test": str(own / "test.beton"),
                "data.val": None,
                "training.resume": "auto",
                "logging.run_dir": str(own),
            }
            results.append(finetune(replace(SCHEMA, cfg, changes)))
        result: dict[str, Any] = {}
        for key in ("top1", "top5"):
            values = [fold[key] for fold in results]
            result |= {key: float(np.mean(values)), f"{key}_std": float(np.std(values, ddof=1))}
        result["folds"] = results
        if distributed.rank() == 0:
            write_json(folder / "result.json", result)
    return result


def _write(beton: str, folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Write the rows of a fold as betons of their own, and which files they test, where that is known."""
    write_subset(beton, train, folder / "train.beton")
    written = write_subset(beton, test, folder / "test.beton")
    files = listed_files(Path(beton))
    list_files(written.path, [files[test[place]] for place in written.places] if files else [])
