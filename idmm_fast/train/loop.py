"""The training loop, the same for pretraining and fine-tuning: steps, schedule, checkpoints, signals, metrics."""

import math
import time

import torch

from ..config import ConfigError, as_dict
from . import distributed
from .device import to_device
from .run import Interrupt, Interrupted, Meter
from .schedule import cosine, learning_rate
from .state import State


def _groups(model, training):
    """AdamW's groups of weights: the head's and the others, each with and without weight decay."""
    head = {id(p) for p in model.head.parameters()}
    groups = {}
    for p in model.parameters():
        if p.requires_grad:
            key = (id(p) in head, training.decay_vectors or p.dim() > 1)
            groups.setdefault(key, {"params": [], "scale": training.head_lr if key[0] else 1.0, "decays": float(key[1])})["params"].append(p)
    return [groups[key] for key in sorted(groups)]


def fit(run, cfg, loader, model, machine, loss_of, *, title, begin_epoch=None, end_epoch=None):
    """Train `model` to the last epoch of `cfg.training`, from the checkpoint `run.state` if there is one.

    loss_of(groups, epoch, step) gives the loss of one batch, groups being a list of (images, idx_a, idx_b, lam) on the
    device; of several processes each gives its part, and the average over them is the loss. begin_epoch(epoch) runs before an epoch;
    end_epoch(epoch, last) after it, and what it returns (a dict of
    numbers) is logged; the state with the highest "top1" of these is kept as best.pt. A step whose loss is not finite is skipped:
    logged without a loss, counted, and the weights stay as they are. Raises Interrupted after a signal, FloatingPointError
    after too many skipped steps in a row, and OSError if a checkpoint can't be written. A model with after_backward(epoch) and after_step(progress), see
    methods.Method, is called there.
    """
    training, per_epoch = cfg.training, len(loader)
    method = hasattr(model, "after_step")
    if training.clip and getattr(model.head, "spread", False):
        raise ConfigError("training.clip does not go with a head that is spread over processes; use head.loss=dense")
    steps, warmup = training.epochs * per_epoch, training.warmup_epochs * per_epoch
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_groups(model, training), lr=0.0, fused=True)
    scaler = machine.scaler()
    state = State(model, optimizer, scaler)
    step = 0
    if run.state is not None:
        state.restore(run.state)
        loader.load_state_dict(run.state["loader"])
        step, run.state = run.state["step"], None

    def save(epoch):
        nonlocal saved_at
        position = {"epoch": step // per_epoch, "step": step % per_epoch}
        run.save({**state.take(), "loader": position, "step": step, "config": as_dict(cfg)}, epoch, step)
        saved_at = time.monotonic()

    images, batch_size = loader.indices.size, training.batch_size
    done = step // per_epoch * images + min(step % per_epoch * batch_size, images)
    meter = Meter(loader, training.epochs * images, done, title)
    pending, skipped, in_a_row = None, 0, 0
    saved_at, best = time.monotonic(), max((line["top1"] for line in run.tested()), default=-1.0)

    def flush(**results):
        nonlocal pending
        if pending:
            write({**pending, **results})
        pending = None

    def write(entry):
        nonlocal skipped, in_a_row
        loss, rows = entry.pop("loss").item(), entry.pop("rows")
        if math.isfinite(loss):
            in_a_row = 0
            run.log(**entry, loss=loss)
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            run.log(**entry, skipped=skipped)
        meter.show(loss=f"{loss:.3f}", lr=f"{entry['lr']:.1e}", **({"skipped": skipped} if skipped else {}))
        if in_a_row >= (2 if entry["step"] == steps - 1 else training.max_skipped):
            named = ", ".join(map(str, rows.unique().tolist()[:20]))
            raise FloatingPointError(
                f"the loss became {loss} at step {entry['step']} (epoch {entry['epoch']}), {in_a_row} times in a row; the last batch held the rows {named} "
                f"of {cfg.data.train}. The last good checkpoint is kept. Go on from it, or begin again, with a smaller training.lr or training.amp=fp32."
            )

    with Interrupt() as interrupt:
        try:
            agreement = distributed.Agreement()
            while step < steps:
                epoch = step // per_epoch
                if begin_epoch:
                    begin_epoch(epoch)
                for groups in to_device(loader, machine.device):
                    lr = learning_rate(step, steps, warmup, training.lr)
                    decay = training.weight_decay
                    if training.weight_decay_end is not None:
                        decay = cosine(step, steps, training.weight_decay, training.weight_decay_end)
                    for group in optimizer.param_groups:
                        group["lr"], group["weight_decay"] = lr * group["scale"], decay * group["decays"]
                    with machine.autocast():
                        loss = loss_of(groups, epoch, step % per_epoch)
                    scaler.scale(loss).backward()
                    if method:
                        model.after_backward(epoch)
                    if training.clip:
                        scaler.unscale_(optimizer)
                        for p in trained:
                            torch.nn.utils.clip_grad_norm_([p], training.clip)
                    loss = distributed.mean(loss.detach().clone())
                    if not scaler.is_enabled():  # the scaler looks at the gradients itself; else the fused step skips by this, unlooked at
                        optimizer.found_inf = (~torch.isfinite(loss)).float()
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    if method:
                        model.after_step(step / steps)
                    meter.step(loader.images_of(step % per_epoch))
                    flush()  # a step late, so that a GPU is never waited for
                    pending = {"epoch": epoch, "step": step, "loss": loss, "rows": groups[0][1], "lr": lr,
                               "images_per_s": round(meter.images_per_s, 2), "wait": round(meter.wait, 4)}  # fmt: skip
                    step += 1
                    minutes = (time.monotonic() - saved_at) / 60
                    late = 0 < training.checkpoint_minutes < minutes and distributed.rank() == 0  # the clocks of the others don't count
                    stop, late = agreement.ask(interrupt.signal, late)
                    if stop:
                        flush()
                        save(epoch)
                        run.written()
                        raise Interrupted(int(stop), run.checkpoints)
                    if step == training.max_steps:
                        flush()
                        return
                    if late and step % per_epoch:
                        flush()
                        save(epoch)
                meter.end_epoch()
                last = step == steps
                if end_epoch and (results := end_epoch(epoch, last)):
                    flush(**results)
                    if results.get("top1", -1.0) > best and not (last and best < 0):  # if it is the only one, it is the last
                        best = results["top1"]
                        run.save_best({**state.weights(), "epoch": epoch, "config": as_dict(cfg), **results})
                if (epoch + 1) % training.checkpoint_every == 0 or last:
                    flush()
                    save(epoch)
        finally:
            meter.bar.close()
            loader.close()
            run.close()
