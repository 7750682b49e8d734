"""How long a training takes on this machine, by a few of its steps: data, forward, backward, update."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..beton import Beton, write_beton
from ..beton.subset import write_subset
from ..config import finetune, pretrain
from ..config.load import PACKAGED, Schema, load_config
from ..datasets import Split
from ..models.cpu import choose_layers
from ..runtime.device import choose_attention, prefetch_to_device
from ..train.batch_size import DEFAULT_BATCH_SIZE, max_batch_size
from ..train.finetuning import Finetuning
from ..train.optim import make_optimizers
from ..train.pretraining import Pretraining
from ..train.task import Task

SECONDS = 6.0  # of each training that is measured, beside its first step
_ON_CPU = 16  # images a step there: images/s are nearly those of more, and a step does not take a minute
_FORWARD = 1 / 3  # of a step, what an evaluation takes
_TRAININGS: dict[str, tuple[Schema, str, Callable[[SimpleNamespace], Task]]] = {
    "pretrain": (pretrain.SCHEMA, "own.yaml", Pretraining),
    "finetune": (finetune.SCHEMA, "finetune/own.yaml", Finetuning),
}


@dataclass(frozen=True)
class Pace:
    """How fast a training is.

    Attributes:
        images_per_s: With as many images a step as the recipe takes and fit, from what was measured with fewer.
        steps: How many were measured.
        limit: Minutes that the recipe takes whatever the images are; 0: it has epochs.
        epochs: Of the recipe, where that counts.
        evaluations: Of the recipe.
        batch_size: Of the recipe.
        fits: How many images a step fit into memory, at most `batch_size`.
    """

    images_per_s: float
    steps: int
    limit: float
    epochs: int
    evaluations: int
    batch_size: int
    fits: int

    def minutes(self, images: int, tested: int = 0) -> float:
        """What all of a training takes but its start, without compilation.

        Args:
            images: Of an epoch.
            tested: Of an evaluation.
        """
        if self.limit:
            return self.limit
        return (self.epochs * images + self.evaluations * tested * _FORWARD) / self.images_per_s / 60

    def epochs_in(self, minutes: float, images: int, tested: int = 0) -> float:
        """How many epochs fit into so many minutes; see `minutes`."""
        return max(0.0, 60 * minutes * self.images_per_s - self.evaluations * tested * _FORWARD) / images


def measure_pace(
    verb: str, keys: Mapping[str, Any], source: Split | Beton, rows: Sequence[int], mode: str = "raw"
) -> Pace:
    """Measure a training by the packaged configuration `own`.

    Args:
        verb: "pretrain" or "finetune".
        keys: What is changed in the configuration, {"section.key": value}.
        source: Where the images are.
        rows: Those that may be taken; a fine-tuning leaves out those without a label.
        mode: How images of files are stored, "raw" or "jpg".

    Raises:
        ConfigError, LoaderError, ValueError, OSError, MemoryError: As of the training.
    """
    schema, name, make_task = _TRAININGS[verb]
    labels = None
    if verb == "finetune":
        labels = source.label if isinstance(source, Beton) else source.labels
        rows = [row for row in rows if labels[row] >= 0]
    with tempfile.TemporaryDirectory() as folder:
        batch = min(len(rows), DEFAULT_BATCH_SIZE if torch.cuda.is_available() else _ON_CPU)
        chosen = _some(rows, 2 * batch, labels)
        beton = _write(source, chosen, Path(folder) / "some.beton", mode)
        # Images are stored as JPEGs where their pixels do not fit into memory: then they are decoded in every epoch.
        cache = {"data.cache": "none"} if mode == "jpg" and isinstance(source, Split) else {}
        values = {
            **cache,
            **keys,
            "data.train": str(beton),
            "data.test": str(beton),
            "training.compile": False,
            "logging.run_dir": folder,
        }
        recipe = load_config(schema, PACKAGED / name, values, ()).training
        task = make_task(load_config(schema, PACKAGED / name, values | {"training.batch_size": batch}, ()))
        fits = min(recipe.batch_size, max_batch_size(task.model, task.runtime, *task.step_cost()))
        rate, update, steps = measure(task, SECONDS)
        size = min(fits, len(rows))
        images_per_s = size / (size / rate + update)
    every = getattr(recipe, "evaluate_every", 0)
    evaluations = -(-recipe.epochs // every) if every else 1
    return Pace(images_per_s, steps, recipe.minutes, recipe.epochs, evaluations, recipe.batch_size, fits)


def _some(rows: Sequence[int], count: int, labels: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Some of the rows, of all classes alike where rows are in their order; of two classes, if there are `labels`."""
    every = np.asarray(rows)
    chosen = np.unique(every[np.linspace(0, len(rows) - 1, count).astype(int)])
    if labels is not None:
        others = every[np.asarray(labels)[every] != labels[chosen[0]]]
        if others.size and not np.isin(others, chosen).any():
            chosen = np.unique([*chosen[:-1], others[0]])
    return chosen


def _write(source: Split | Beton, chosen: np.ndarray, path: Path, mode: str) -> Path:
    """A beton of some rows."""
    if isinstance(source, Beton):
        write_subset(source.path, chosen, path)
        return path
    part = source.choose(chosen.tolist())
    return write_beton(path, part, dataset="folder", name="some", mode=mode, quiet=True).path


def measure(task: Task, seconds: float) -> tuple[float, float, int]:
    """Take a first step, which may compile the loader's kernels, and time two or more for about so many seconds.

    Returns:
        Images/s of loading, forward and backward; seconds of an update, which takes the same time (Muon's a long one)
        whatever the number of images is; how many steps were timed.

    Raises:
        ValueError: A step takes more than four times as long.
    """
    choose_attention(task.model, task.runtime)
    choose_layers(task.model, task.runtime)
    task.prepared = task.model
    optimizers = make_optimizers(task.model, task.cfg.training)
    marks, images, updates = [time.perf_counter()], [0], [0.0]
    with contextlib.closing(task.loader):
        for epoch in itertools.count():
            for step, groups in enumerate(prefetch_to_device(task.loader, task.runtime.device)):
                with task.runtime.autocast():
                    loss = task.loss(groups, epoch, step)
                loss.backward()
                loss.item()  # waits for a GPU
                before = time.perf_counter()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                loss.item()
                marks.append(time.perf_counter())
                updates.append(marks[-1] - before)
                images.append(task.loader.global_batch_len(step))
                steps, passed = len(marks) - 2, marks[-1] - marks[1]
                if steps == 1 and passed > 4 * seconds:
                    raise ValueError(f"a step takes {passed:.0f} s, too long to measure a few")
                if steps >= 2 and passed >= seconds:
                    updating = sum(updates[2:])
                    return sum(images[2:]) / (passed - updating), updating / steps, steps
    raise AssertionError("epochs have no end")
