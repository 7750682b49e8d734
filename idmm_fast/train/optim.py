"""The optimisers: groups of weights, and the schedules of learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .muon import Muon


def make_optimizers(model: nn.Module, training: SimpleNamespace) -> list[torch.optim.Optimizer]:
    """Make the optimisers of the weights of `model` that are trained.

    AdamW has the head and the rest as a group each, and each of the two one with and one without weight decay. With
    training.optimizer=muon the weights of the backbone's linear layers leave it for `Muon`, which has one group. A
    group's `scale` multiplies the learning rate, its `decays` (0 or 1) the weight decay; see `set_schedule`.

    Args:
        model: a module with a `head` and a `backbone`.
        training: the section `training` of a configuration.

    Returns:
        torch.optim.AdamW, fused, and Muon where it is asked for, with learning rate 0. A step changes nothing where the
        optimiser's attribute `found_inf`, float32 on the device, is not 0.
    """
    head = {id(p) for p in model.head.parameters()}  # type: ignore[union-attr]
    matrices = _matrices(model.backbone) - head if training.optimizer == "muon" else set()  # type: ignore[arg-type]
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for p in model.parameters():
        if not p.requires_grad or id(p) in matrices:
            continue
        in_head, decays = id(p) in head, training.decay_norm_bias or p.dim() > 1
        scale = training.head_lr_scale if in_head else 1.0
        group = groups.setdefault((in_head, decays), {"params": [], "scale": scale, "decays": float(decays)})
        group["params"].append(p)
    adamw = torch.optim.AdamW([groups[key] for key in sorted(groups)], lr=0.0, fused=True)
    chosen = [p for p in model.parameters() if p.requires_grad and id(p) in matrices]
    return [adamw, Muon([{"params": chosen, "scale": 1.0, "decays": 1.0}])] if chosen else [adamw]


def _matrices(backbone: nn.Module) -> set[int]:
    """The ids of the weights of the backbone's linear layers; embeddings, convolutions, norms, biases are none."""
    return {id(m.weight) for m in backbone.modules() if isinstance(m, nn.Linear)}


def set_schedule(
    optimizers: Iterable[torch.optim.Optimizer], training: SimpleNamespace, step: int, steps: int, warmup: float
) -> float:
    """Set learning rate and weight decay of every group for a step.

    Args:
        optimizers: made by `make_optimizers`.
        training: the section `training` of a configuration.
        step: number of the step, 0 .. steps - 1.
        steps: steps of the whole training.
        warmup: steps of the warm-up; may be a fraction.

    Returns:
        The learning rate of the groups whose scale is 1.
    """
    lr = learning_rate(step, steps, warmup, training.lr)
    decay = training.weight_decay
    if training.weight_decay_end is not None:
        decay = cosine(step, steps, training.weight_decay, training.weight_decay_end)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"], group["weight_decay"] = lr * group["scale"], decay * group["decays"]
    return lr


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """The learning rate at `step`: linear warm-up from 0, then a cosine to 0.

    It is peak * step / warmup, then peak * (1 + cos(pi t)) / 2 with t from 0 to 1.

    Args:
        step: 0 .. steps - 1.
        steps: steps of the whole training.
        warmup: steps of the warm-up.
        peak: the highest learning rate.
    """
    if step < warmup:
        return peak * step / warmup
    return cosine(step - warmup, max(1, steps - warmup), peak, 0.0)


def cosine(step: float, steps: float, first: float, last: float) -> float:
    """From `first` at step 0 to `last` at `steps`, along half a cosine."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def clip_each_grad(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip the gradient of each parameter on its own to the norm `max_norm`, as DINO's released code does.

    It is torch.nn.utils.clip_grad_norm_ for one parameter after another, with an eighth of the launches.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        norms = torch.stack(torch._foreach_norm(grads))
        torch._foreach_mul_(grads, (max_norm / (norms + 1e-6)).clamp_(max=1.0).unbind())
