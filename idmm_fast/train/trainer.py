"""The trainer: steps, logging, checkpoints, evaluations and signals, the same for every task."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..config import ConfigError, as_dict
from ..runtime import distributed
from ..runtime.device import HostCopy, prefetch_to_device, without_exchange
from .checkpoint import CheckpointClock
from .nonfinite import NonFiniteGuard, loss_and_bad
from .optim import clip_each_grad, make_optimizers, set_schedule
from .signals import Interrupted, SignalFlag
from .state import TrainState
from .throughput import Throughput
from .time_budget import UNKNOWN, WARMUP, TimeBudget

if TYPE_CHECKING:
    from pathlib import Path

    from .run_dir import RunDir
    from .task import Groups, Task


FEW_EPOCHS = 10  # of training.minutes; fewer are told as a mistake


class Trainer:
    """Trains the model of a task to its last epoch, from the checkpoint of the run if there is one.

    The parts that can be read alone: `_train_step` (one step), `_log_pending` (logging), nonfinite.py (steps that are
    skipped), `_save` and `CheckpointClock` (when checkpoints are written), `_evaluate` (evaluation and best.pt),
    signals.py and `_stop` (signals).

    Args:
        task: a task.Task: data, model, loss and evaluation.
        run: the run_dir.RunDir that is written to.

    Raises:
        ConfigError: training.clip_grad with a sharded head.
    """

    def __init__(self, task: Task, run: RunDir) -> None:
        self.task, self.run, self.training = task, run, task.cfg.training
        self.loader, self.model, self.runtime = task.loader, task.model, task.runtime
        if self.training.clip_grad and getattr(self.model.head, "is_sharded", False):
            raise ConfigError(
                "training.clip_grad does not work with a head that is sharded over processes; use head.loss=dense"
            )
        self.accumulate = self.training.accumulate
        self.step_images = self.training.batch_size * self.accumulate  # of a whole step
        self.steps_per_epoch = -(-len(self.loader) // self.accumulate)
        self.steps = self.training.epochs * self.steps_per_epoch
        self.warmup = self.training.warmup_epochs * self.steps_per_epoch
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = make_optimizers(self.model, self.training)
        self.scaler = self.runtime.scaler()
        self.state = TrainState(self.model, self.optimizers, self.scaler, task.average)
        self.nonfinite = NonFiniteGuard(self.training.max_nonfinite_steps)
        self.budget: TimeBudget | None = None
        if self.training.minutes:
            evaluation = task.evaluated_images / self.step_images / 3  # a forward pass alone
            self.budget, self.steps = TimeBudget(self.training.minutes, evaluation), UNKNOWN
        self._is_said = False
        self.step, self.best, self.is_over = 0, -1.0, False
        # Of the batches of the step so far: (loss, rows).
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        # What a step logs, once its loss has arrived.
        self._pending: tuple[dict[str, Any], HostCopy, torch.Tensor] | None = None
        if run.state is not None:
            self._resume()
        self.clock = CheckpointClock(self.training.checkpoint_minutes, self.step)
        images = self.loader.indices.size
        epoch, step = divmod(self.step, self.steps_per_epoch)
        done = epoch * images + min(step * self.step_images, images)
        self.throughput = Throughput(self.loader, self.training.epochs * images, done, task.title)
        self._set_steps(self.steps)

    def _resume(self) -> None:
        """Resume from the checkpoint of the run."""
        state, self.run.state = self.run.state, None
        self.state.load_state_dict(state)
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        if state["loader"] != {"epoch": epochs, "step": steps * self.accumulate}:
            processes = len(state["random"])
            raise ConfigError(
                f"{self.run.folder} can't be resumed by {distributed.world()} processes: an epoch has "
                f"{self.steps_per_epoch} steps here, and had another number where the checkpoint was written, by "
                f"{processes}. Start so many, with the version of idmm_fast that was used then."
            )
        self.nonfinite.skipped, self.nonfinite.consecutive = state.get("skipped", 0), state.get("consecutive", 0)
        self.best = self.run.best(self.step // self.steps_per_epoch)
        if self.budget is not None:
            self.budget.load_state_dict(state["budget"])
            self.steps = self.budget.steps

    def train(self) -> None:
        """Train to the last epoch, or for training.max_steps steps.

        Raises:
            Interrupted: after a signal; a checkpoint is written, if the step could be finished.
            FloatingPointError: after too many steps in a row that are not finite.
            OSError: where a checkpoint can't be written.
        """
        with SignalFlag() as signals:
            try:
                consensus = distributed.Consensus()
                is_whole = self.step % self.steps_per_epoch == 0 or self.step == self.steps
                if self.budget is not None:
                    self.budget.start(self.step)
                if self.step and is_whole and not self.run.is_evaluated():  # stopped before that evaluation
                    self._evaluate((self.step - 1) // self.steps_per_epoch)
                    if self.budget is not None:
                        self.budget.restart(self.step)
                self.is_over = self.step >= self.steps or self.task.stops_early(self.run)
                if 0 < self.training.max_steps <= self.step:
                    return
                while not self.is_over:
                    if not self._train_epoch(self.step // self.steps_per_epoch, signals, consensus):
                        return
                if self.step < self.steps:
                    self._end_early()
                stop = max(distributed.all_gather_objects(signals.signal))
                if stop:  # it came in the last evaluation: what follows this training must not begin
                    self.run.wait_for_checkpoints()
                    raise Interrupted(stop, self._checkpoints)
            finally:
                self.throughput.close()
                self.loader.close()
                self.run.wait_for_checkpoints()

    def _train_epoch(self, epoch: int, signals: SignalFlag, consensus: distributed.Consensus) -> bool:
        """Train the rest of an epoch; return False where a dry run (training.max_steps) ends in it."""
        for groups in prefetch_to_device(self.loader, self.runtime.device):
            try:
                is_done = self._train_step(groups, epoch)
            except RuntimeError as error:
                if not signals.signal:
                    raise
                # A terminal's Ctrl-C goes to all of its processes, torch's compilers too, which the step waits for.
                raise Interrupted(signals.signal, self._checkpoints, is_written=False) from error
            if not is_done:
                continue
            # The clocks of other processes don't count: all must write the same checkpoint.
            due: float = self.clock.is_due() and distributed.rank() == 0
            stop, due = consensus.all_reduce_max(signals.signal, due)
            due = due and self.step - self.clock.step > consensus.delay  # else it was asked before the last was written
            if stop:
                self._stop(stop, epoch)
            if 0 < self.training.max_steps <= self.step:
                self._log_pending()
                self.throughput.show_epoch(epoch, True, True, {})
                return False
            self._keep_time()
            if self.step == self.steps and self.step % self.steps_per_epoch:  # the time is over in mid-epoch
                break
            if due and self.step % self.steps_per_epoch:
                self._log_pending()
                self._save(epoch)
        self.throughput.end_epoch()
        if (epoch + 1) % self.training.checkpoint_every == 0 or self.step == self.steps or due:
            self._log_pending()
            self._save(epoch)  # before the evaluation, which may take long, and fail
        results = self._evaluate(epoch)
        self.is_over = self.step >= self.steps or (bool(results) and self.task.stops_early(self.run))
        self.throughput.show_epoch(epoch, self.is_over, self._pending is None, results)
        return True

    def _end_early(self) -> None:
        """Write what the last epoch left, unless that is done, so that a resumed run finds that it has ended."""
        self.task.has_stopped_early, epochs = True, self.step // self.steps_per_epoch
        if self.clock.step < self.step:
            self._save(epochs - 1)
        if distributed.rank() == 0:
            evaluations = f"{self.training.patience} evaluations without a better top-1 on data.val"
            tqdm.write(f"stopped after epoch {epochs}: {evaluations} (training.patience)")

    def _keep_time(self) -> None:
        """Find out how many steps fit into training.minutes, where that is due."""
        budget, minutes = self.budget, self.training.minutes
        if budget is None or not budget.is_due(self.step):
            return
        steps, seconds = distributed.broadcast_from_main(lambda: budget.estimate(self.step))
        budget.plan(self.step, steps)
        self._set_steps(steps)
        if not self._is_said and distributed.rank() == 0 and self.step >= min(16, steps // 50):
            self._is_said = True
            epochs = steps / self.steps_per_epoch
            few = "; so few teach little: raise training.minutes" if epochs < FEW_EPOCHS else ""
            tqdm.write(f"minutes={minutes:g}: about {epochs:.3g} epochs fit ({steps:,} steps of {seconds:.3g} s){few}")

    def _set_steps(self, steps: int) -> None:
        """Let the training, and its schedule, have so many steps."""
        self.steps = steps
        if self.budget is not None:
            self.warmup = min(self.training.warmup_epochs * self.steps_per_epoch, WARMUP * steps)
            epochs, rest = divmod(steps, self.steps_per_epoch)
            images = epochs * self.loader.indices.size + rest * self.step_images
            self.throughput.set_total(None if steps == UNKNOWN else images, self.budget.seconds - self.budget.used())

    def _train_step(self, groups: Groups, epoch: int) -> bool:
        """Forward and backward pass of a batch and, after the last batch of a step, the update.

        Its loss is logged a step later, so that a GPU is never waited for.

        Returns:
            Whether the step is done: with training.accumulate it takes several batches.
        """
        first = self.step % self.steps_per_epoch * self.accumulate
        batches = range(first, min(first + self.accumulate, len(self.loader)))
        batch = batches[len(self._parts)]
        is_last, images = batch == batches[-1], self.loader.global_batch_len
        with contextlib.nullcontext() if is_last else without_exchange(self.task.prepared):
            with self.runtime.autocast():
                loss = self.task.loss(groups, epoch, batch)
            if len(batches) > 1:  # the step's loss is the mean over the images of all its batches
                loss = loss * (images(batch) / sum(map(images, batches)))
            self.scaler.scale(loss).backward()
        rows = groups[0][1]
        self._parts.append((loss.detach(), rows if is_last else rows.clone()))  # the loader wants its memory back
        if not is_last:
            self.throughput.step(images(batch))
            return False
        lr, looked_at, rows = self._update(epoch)
        self.throughput.step(images(batch))
        self._log_pending()
        entry = {"epoch": epoch, "step": self.step, "lr": lr, **self.throughput.metrics()}
        self._pending = entry, looked_at, rows
        self.step += 1
        return True

    def _update(self, epoch: int) -> tuple[float, HostCopy, torch.Tensor]:
        """Update the weights with the gradients of all batches of a step.

        Returns:
            (learning rate, see `loss_and_bad`, the dataset rows of its images).
        """
        lr = set_schedule(self.optimizers, self.training, self.step, self.steps, self.warmup)
        self.task.after_backward(epoch)
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        if self.training.clip_grad:
            clip_each_grad(self.parameters, self.training.clip_grad)
        losses, rows = zip(*self._parts)
        self._parts = []
        looked_at = loss_and_bad(losses[0] if len(losses) == 1 else torch.stack(losses).sum(), self.parameters)
        copied = HostCopy(looked_at)
        for optimizer in self.optimizers:
            # All skip a step together by this flag, which GradScaler sets for a fused optimiser
            # (torch/amp/grad_scaler.py). So nothing has to be read back from the device.
            optimizer.found_inf = looked_at[1]  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.task.after_step(self.step, self.step / self.steps)
        return lr, copied, rows[0] if len(rows) == 1 else torch.cat(rows)

    def _log_pending(self) -> None:
        """Log the last step, if that is not done yet."""
        if self._pending is None:
            return
        (entry, copied, rows), self._pending = self._pending, None
        loss, bad = copied.tolist()
        self.nonfinite.count(bad)
        self.run.log(**entry, **({"nonfinite_steps": self.nonfinite.skipped} if bad else {"loss": loss}))
        self.throughput.show(entry["epoch"], loss, entry["lr"], self.nonfinite.skipped)
        where, last = f"step {entry['step']} (epoch {entry['epoch']})", entry["step"] == self.steps - 1
        self.nonfinite.check(where, loss, last, rows, self.task.cfg.data.train)

    def _save(self, epoch: int) -> None:
        """Write a checkpoint, but of a dry run (training.max_steps), and start its clock again."""
        if self.training.max_steps:
            self.clock.restart(self.step)
            return
        began = self.budget.used() if self.budget is not None else 0.0
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        state = {
            **self.state.state_dict(),
            "loader": {"epoch": epochs, "step": steps * self.accumulate},
            "step": self.step,
            "skipped": self.nonfinite.skipped,
            "consecutive": self.nonfinite.consecutive,
            "config": as_dict(self.task.cfg),
            **({"budget": self.budget.state_dict()} if self.budget is not None else {}),
        }
        self.run.save(state, epoch, self.step)
        self.clock.restart(self.step)
        if self.budget is not None:
            self.budget.add_aside("checkpoint", began)

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Evaluate after an epoch, where the task does, and keep the state with the highest top-1 as best.pt."""
        last = self.step == self.steps
        began = self.budget.used() if self.budget is not None else 0.0
        for module in filter(None, (self.model, self.task.average)):
            distributed.broadcast_running_stats(module)
        results = self.task.evaluate(epoch, last)
        if not results:
            return {}
        self._log_pending()
        only = last and not self.run.evaluations()  # the only evaluation is that of the last checkpoint
        if results.get("top1", -1.0) > self.best and not only and not self.training.max_steps:
            self.best = results["top1"]
            state = {**self.state.weights(), "epoch": epoch, "config": as_dict(self.task.cfg), **results}
            self.run.save_best(state, self.step)
        self.run.add(**results)
        if self.budget is not None:
            self.budget.add_aside("evaluation", began)
        return results

    def _stop(self, signal: float, epoch: int) -> None:
        """Write a checkpoint and raise Interrupted; `signal` went through the float64 maximum over all processes."""
        self._log_pending()
        self._save(epoch)
        # Nobody leaves before: the end of one process ends the others.
        distributed.broadcast_from_main(self.run.wait_for_checkpoints)
        raise Interrupted(int(signal), self._checkpoints)

    @property
    def _checkpoints(self) -> Path | None:
        """Their folder; None for a dry run (training.max_steps), which has none."""
        return None if self.training.max_steps else self.run.checkpoints
