"""The training loop, the same for pretraining and fine-tuning: steps, schedule, checkpoints, signals, metrics."""

import math
import time

import torch

from ..config import ConfigError, as_dict
from ..runtime import distributed
from ..runtime.device import to_device
from .schedule import cosine, learning_rate
from .signals import Interrupted, SignalFlag
from .state import State
from .throughput import Throughput


def _groups(model, training):
    """AdamW's groups of weights: the head's and the others, each with and without weight decay."""
    head = {id(p) for p in model.head.parameters()}
    groups = {}
    for p in model.parameters():
        if p.requires_grad:
            key = (id(p) in head, training.decay_norm_bias or p.dim() > 1)
            groups.setdefault(
                key, {"params": [], "scale": training.head_lr_scale if key[0] else 1.0, "decays": float(key[1])}
            )["params"].append(p)
    return [groups[key] for key in sorted(groups)]


def fit(run, cfg, loader, model, machine, loss_of, *, title, begin_epoch=None, end_epoch=None):
    """Train `model` to the last epoch of `cfg.training`, from the checkpoint `run.state` if there is one.

    loss_of(groups, epoch, step) gives the loss of one batch, groups being a list of (images, idx_a, idx_b, lam) on the
    device; of several processes each gives its part, and the average over them is the loss. begin_epoch(epoch) runs before an epoch;
    end_epoch(epoch, last) after it, and after its checkpoint, and
    what it returns (a dict of numbers) is logged; the state with the highest "top1" of these is kept as best.pt. A step whose loss or gradients are not
    finite is skipped: logged without a loss, counted, and the weights stay as they are. Raises Interrupted after a signal, FloatingPointError
    after too many skipped steps in a row, and OSError if a checkpoint can't be written. A model with after_backward(epoch) and after_step(progress), see
    methods.Method, is called there.
    """
    training, per_epoch = cfg.training, len(loader)
    method = hasattr(model, "after_step")
    if training.clip_grad and getattr(model.head, "spread", False):
        raise ConfigError(
            "training.clip_grad does not go with a head that is spread over processes; use head.loss=dense"
        )
    steps, warmup = training.epochs * per_epoch, training.warmup_epochs * per_epoch
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_groups(model, training), lr=0.0, fused=True)
    scaler = machine.scaler()
    state = State(model, optimizer, scaler)
    pending, step, skipped, in_a_row, resumed = None, 0, 0, 0, run.state is not None
    if resumed:
        state.restore(run.state)
        loader.load_state_dict(run.state["loader"])
        step, skipped, in_a_row = (run.state.get(key, 0) for key in ("step", "skipped", "in_a_row"))
        run.state = None
    best = run.best(step // per_epoch) if resumed else -1.0
    saved_at, saved_step = time.monotonic(), step

    def save(epoch):
        nonlocal saved_at, saved_step
        position = {"epoch": step // per_epoch, "step": step % per_epoch}
        counts = {"step": step, "skipped": skipped, "in_a_row": in_a_row}
        run.save({**state.take(), "loader": position, **counts, "config": as_dict(cfg)}, epoch, step)
        saved_at, saved_step = time.monotonic(), step

    images, batch_size = loader.indices.size, training.batch_size
    done = step // per_epoch * images + min(step % per_epoch * batch_size, images)
    meter = Throughput(loader, training.epochs * images, done, title)

    def flush():
        nonlocal pending, skipped, in_a_row
        if not pending:
            return
        entry, pending = pending, None
        rows = entry.pop("rows")
        loss, bad = entry.pop("loss_and_bad").tolist()
        if bad:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            run.log(**entry, nonfinite_steps=skipped)
        else:
            in_a_row = 0
            run.log(**entry, loss=loss)
        meter.show(loss=f"{loss:.3f}", lr=f"{entry['lr']:.1e}", **({"skipped": skipped} if skipped else {}))
        if in_a_row >= (2 if entry["step"] == steps - 1 else training.max_nonfinite_steps):
            named = ", ".join(map(str, rows.unique().tolist()[:20]))
            what = (
                f"the gradients of a finite loss ({loss:.4g}) were not finite"
                if math.isfinite(loss)
                else f"the loss became {loss}"
            )
            raise FloatingPointError(
                f"{what} at step {entry['step']} (epoch {entry['epoch']}), {in_a_row} times in a row; the last batch held the rows {named} "
                f"of {cfg.data.train}. The last good checkpoint is kept. Go on from it, or begin again, with a smaller training.lr or training.amp=fp32."
            )

    def evaluate(epoch):
        nonlocal best
        last = step == steps
        results = end_epoch(epoch, last) if end_epoch else None
        if not results:
            return
        if results.get("top1", -1.0) > best and not (
            last and not run.tested()
        ):  # if it is the only one, it is the last
            best = results["top1"]
            run.save_best({**state.weights(), "epoch": epoch, "config": as_dict(cfg), **results}, step)
        run.add(**results)

    with SignalFlag() as interrupt:
        try:
            agreement = distributed.Agreement()
            if (
                step and step % per_epoch == 0 and not run.is_evaluated()
            ):  # stopped between an epoch's last step and its evaluation
                evaluate(step // per_epoch - 1)
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
                    if training.clip_grad:
                        scaler.unscale_(optimizer)
                        for p in trained:
                            torch.nn.utils.clip_grad_norm_([p], training.clip_grad)
                    loss_and_bad = _looked_at(loss, trained)
                    if (
                        not scaler.is_enabled()
                    ):  # it looks at the gradients itself; without it the fused step skips by this, unlooked at
                        optimizer.found_inf = loss_and_bad[1]
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    if method:
                        model.after_step(step / steps)
                    meter.step(loader.images_of(step % per_epoch))
                    flush()  # a step late, so that a GPU is never waited for
                    pending = {
                        "epoch": epoch,
                        "step": step,
                        "loss_and_bad": loss_and_bad,
                        "rows": groups[0][1],
                        "lr": lr,
                        "images_per_s": round(meter.images_per_s, 2),
                        "data_wait": round(meter.wait, 4),
                    }
                    step += 1
                    minutes = (time.monotonic() - saved_at) / 60
                    late = (
                        0 < training.checkpoint_minutes < minutes and distributed.rank() == 0
                    )  # the clocks of the others don't count
                    stop, late = agreement.ask(interrupt.signal, late)
                    late = (
                        late and step - saved_step > agreement.delay
                    )  # else it was asked before the last one was written
                    if stop:
                        flush()
                        save(epoch)
                        distributed.broadcast_from_main(
                            run.written
                        )  # nobody leaves before: the end of one ends the others
                        raise Interrupted(int(stop), run.checkpoints)
                    if step == training.max_steps:
                        flush()
                        return
                    if late and step % per_epoch:
                        flush()
                        save(epoch)
                meter.end_epoch()
                flush()
                if (epoch + 1) % training.checkpoint_every == 0 or step == steps or late:
                    save(epoch)  # before the evaluation, which may take long, and fail
                evaluate(epoch)
            stop = max(distributed.all_gather_objects(interrupt.signal))
            if stop:  # it came in the last evaluation: what follows this training is not to begin
                run.written()
                raise Interrupted(stop, run.checkpoints)
        finally:
            meter.bar.close()
            loader.close()
            run.close()


def _looked_at(loss, parameters):
    """float32 (2,) on the device: the loss, over all processes, and 1 where it or a gradient of `parameters` is not finite in any of them, else 0.

    Nothing waits for the device. What is not finite shows in the largest absolute value, which can't overflow.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    largest = torch.nn.utils.get_total_norm(grads, float("inf"), foreach=None) if grads else loss.new_zeros(())
    both = torch.stack([loss.detach().float(), (~torch.isfinite(largest)).float()])
    both = distributed.total(both)
    return torch.stack([both[0] / distributed.world(), ((both[1] > 0) | ~torch.isfinite(both[0])).float()])
