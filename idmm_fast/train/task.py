"""A task: what pretraining and fine-tuning give the trainer, and how one is trained in its run folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import nn

from ..beton import Beton
from ..config import ConfigError
from ..loader import Augment, MultiCropLoader
from ..models.cpu import choose_layers
from ..plots.batch import plot_batch
from ..plots.curves import plot_curves
from ..runtime import distributed
from ..runtime.device import Runtime, choose_attention, uncompiled
from .batch_size import max_batch_size, oom_hint, oom_told
from .run_dir import RunDir
from .trackers import check_installed
from .trainer import Trainer

Groups: TypeAlias = list[tuple[torch.Tensor, ...]]  # of a batch on the device: (images, idx_a, idx_b, lam) of each


class Task:
    """Data, model, loss and evaluation of one training. The trainer knows nothing else of it.

    Attributes that a subclass sets when it is made:
        title: what the progress bar is called.
        cfg: the configuration, with a number for training.batch_size.
        betons: {"train": Beton, ...}, what the run depends on.
        loader: the loader of the training images.
        model: the module that is trained, with a `head`, on the device.
        runtime: the runtime.device.Runtime that it is trained on.
        description: one line on what is trained.
        evaluated_images: images of the last evaluation; 0: not known, or there is none.
        average: a moving average of the model, which checkpoints hold too; None: there is none.

    `train` sets `prepared`, the model compiled, and with gradients averaged over the processes; see `model_for`. The
    trainer sets `has_stopped_early`, whether `stops_early` has ended the training.
    """

    title = ""
    cfg: SimpleNamespace
    betons: dict[str, Beton]
    loader: MultiCropLoader
    model: nn.Module
    runtime: Runtime
    description: str
    evaluated_images = 0
    average: nn.Module | None = None
    has_stopped_early = False
    prepared: nn.Module

    def has_partial_batch(self) -> bool:
        """Whether an epoch ends with a batch that is smaller than those before it."""
        last = len(self.loader) - 1
        return last > 0 and self.loader.global_batch_len(last) < self.loader.global_batch_len(0)

    def model_for(self, step: int) -> nn.Module:
        """The model to call for batch `step` of an epoch.

        The last batch, where it is smaller, is not compiled: a graph of its own takes longer than it saves. All
        processes do the same, whatever their part of the batch, since the order in which they talk depends on it.
        """
        is_partial = step == len(self.loader) - 1 and self.has_partial_batch()
        return uncompiled(self.prepared) if is_partial else self.prepared

    def loss(self, groups: Groups, epoch: int, step: int) -> torch.Tensor:
        """The loss of one batch.

        Args:
            groups: a list of (images, idx_a, idx_b, lam) on the device, one for each group of crops; see loader.Group.
            epoch: number of the epoch.
            step: number of the step in it.

        Returns:
            float, scalar. Of several processes each gives its part, and the average over them is the loss.
        """
        raise NotImplementedError

    def step_cost(self) -> tuple[Callable[[int], torch.Tensor], int]:
        """(the loss of a step of n images, whatever they show, as a function of n; bytes of an image in the loader)."""
        raise NotImplementedError

    def after_backward(self, epoch: int) -> None:
        """Runs when the gradients are there, before the optimizer uses them."""

    def after_step(self, step: int, progress: float) -> None:
        """Runs after step `step`; `progress` goes from 0 to 1 over the training."""

    def evaluate(self, epoch: int, last: bool) -> dict[str, float] | None:
        """Runs after an epoch, and after its checkpoint where one is due.

        Args:
            epoch: number of the epoch.
            last: whether it is the last one.

        Returns:
            {name: number} to log, or None. The state with the highest "top1" is kept as best.pt.
        """

    def stops_early(self, run: RunDir) -> bool:
        """Whether training ends before its last epoch; asked after an evaluation, in every process."""
        return False

    def finish(self, run: RunDir) -> Any:
        """Write what the training made into the run folder, and return what its caller gets."""
        raise NotImplementedError


def train(make_task: Callable[[SimpleNamespace], Task], cfg: SimpleNamespace) -> Any:
    """Train a task in its run folder, logging.run_dir, and return what its `finish` gives.

    Args:
        make_task: called with `cfg`, gives the Task.
        cfg: a configuration.

    Raises:
        ConfigError, BetonError, LoaderError, ValueError, OSError, MemoryError: see their sentences.
        Interrupted: after a signal; a checkpoint is written, if the step could be finished.
        FloatingPointError: the loss or weights are not finite.
    """
    with distributed.process_group(cfg.training.device), contextlib.ExitStack() as stack:
        distributed.broadcast_from_main(lambda: check_installed(cfg.logging))
        with oom_told("the model"):
            task = make_task(cfg)
        cfg = task.cfg
        if not len(task.loader):
            raise ConfigError(
                f"{task.loader.indices.size} images are too few for {distributed.world()} processes: each needs one, "
                f"or with cutmix.chunk_size so many. Start fewer processes"
            )
        run = stack.enter_context(contextlib.closing(RunDir(cfg.logging.run_dir, cfg, task.betons)))
        if run.state is None and run.is_main:
            plot_batch(task.loader, run.folder / "crops.png")
        compiled = " in the first step" + " (not an epoch's last batch, which is smaller)" * task.has_partial_batch()
        minutes, length = cfg.training.minutes, f"{cfg.training.epochs} epochs"
        length = f"{minutes:g} minutes (whatever training.epochs says), epochs" if minutes else length
        run.announce(
            f"{task.description}, {length} of {_steps(len(task.loader), cfg)}; {task.runtime}"
            f"{compiled if task.runtime.compile else ''}"
        )
        distributed.seed_by_rank(cfg.training.seed)
        choose_attention(task.model, task.runtime, task.loader.largest)
        choose_layers(task.model, task.runtime)
        task.prepared = task.runtime.prepare(task.model)
        with oom_hint(
            cfg.training,
            _can_accumulate(cfg),
            lambda: max_batch_size(task.model, task.runtime, *task.step_cost()),
            task.loader.traversal_order.unit,
        ):
            Trainer(task, run).train()
        result = task.finish(run)
        if run.is_main:
            plot_curves(run.folder)
        return result


def _steps(batches: int, cfg: SimpleNamespace) -> str:
    """The steps of an epoch of so many batches, in words."""
    each = cfg.training.accumulate
    if each > batches and distributed.rank() == 0:
        print(f"training.accumulate {each} is more than the {batches} batches of an epoch", file=sys.stderr)
    steps = -(-batches // each)
    return f"{steps} step" + "s" * (steps != 1) + f" of {each} batches" * (each > 1)


def _can_accumulate(cfg: SimpleNamespace) -> bool:
    """Whether training.accumulate goes with the rest, see config.pretrain.check."""
    return not hasattr(cfg, "method") or (
        cfg.method.name == "idmm" and cfg.head.sample_rate == 1 and cfg.crops.spread == 1
    )


def make_augment(cfg: SimpleNamespace) -> Augment:
    """The loader's Augment from the section `augment`."""
    return Augment(**vars(cfg.augment))


def loader_args(cfg: SimpleNamespace) -> dict[str, Any]:
    """The loader's arguments that depend on the processes and the length of training.

    Returns:
        {"batch_size", "num_workers", "rank", "world_size", "epochs"}.

    Raises:
        ConfigError: the number of processes does not divide training.batch_size.
    """
    size, world = cfg.training.batch_size, distributed.world()
    if size % world:
        raise ConfigError(f"training.batch_size {size} is shared by {world} processes, which does not divide it")
    workers = cfg.data.num_workers or distributed.cores()
    return {
        "batch_size": size // world,
        "num_workers": workers,
        "rank": distributed.rank(),
        "world_size": world,
        "epochs": None if cfg.training.minutes else cfg.training.epochs,
    }


def check_warmup(cfg: SimpleNamespace) -> None:
    """Warn where the warm-up is as long as the training, which then ends at its highest learning rate, or below."""
    epochs, warmup = cfg.training.epochs, cfg.training.warmup_epochs
    if warmup >= epochs and not cfg.training.minutes and not cfg.training.max_steps and distributed.rank() == 0:
        print(
            f"training.warmup_epochs {warmup:g} is not below training.epochs {epochs}: "
            f"the learning rate will only rise",
            file=sys.stderr,
        )
