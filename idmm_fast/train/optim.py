"""The optimisers: groups of weights, and the schedules of learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from ..config import ConfigError
from .muon import Muon


def make_optimizers(model: nn.Module, training: SimpleNamespace) -> list[torch.optim.Optimizer]:
    """Make the optimisers of the weights of `model` that are trained.

    AdamW has the head and the rest as a group each, and each of the two one with and one without weight decay. With
    training.optimizer=muon the weights of the backbone's linear layers leave it for `Muon`. A group's `scale`
    multiplies the learning rate, its `decays` (0 or 1) the weight decay; see `set_schedule`. With training.layer_decay
    below 1 each layer of the backbone has groups of its own, see `_layer_scales`.

    Args:
        model: a module with a `head` and a `backbone`.
        training: the section `training` of a configuration.

    Returns:
        torch.optim.AdamW, fused, and Muon where it is asked for, with learning rate 0. A step changes nothing where the
        optimiser's attribute `found_inf`, float32 on the device, is not 0.

    Raises:
        ConfigError: training.layer_decay with a backbone whose layers timm can't tell.
    """
    head = {id(p) for p in model.head.parameters()}  # type: ignore[union-attr]
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    layer_decay = getattr(training, "layer_decay", 1.0)  # a key of fine-tuning alone
    scales = _layer_scales(backbone, layer_decay) if layer_decay < 1 else {}
    matrices = _matrices(backbone) - head if training.optimizer == "muon" else set()
    groups: dict[tuple[bool, bool, bool, float], dict[str, Any]] = {}
    for p in model.parameters():
        if not p.requires_grad:
            continue
        in_head, is_matrix = id(p) in head, id(p) in matrices
        decays = training.decay_norm_bias or p.dim() > 1
        scale = training.head_lr_scale if in_head else scales.get(id(p), 1.0)
        group: dict[str, Any] = {"params": [], "scale": scale, "decays": float(decays)}
        groups.setdefault((is_matrix, in_head, decays, scale), group)["params"].append(p)
    of_adamw = [groups[key] for key in sorted(groups) if not key[0]]
    of_muon = [groups[key] for key in sorted(groups) if key[0]]
    adamw = torch.optim.AdamW(of_adamw, lr=0.0, fused=True)
    return [adamw, Muon(of_muon)] if of_muon else [adamw]


def _matrices(backbone: nn.Module) -> set[int]:
    """The ids of the weights of the backbone's linear layers; embeddings, convolutions, norms, biases are none."""
    return {id(m.weight) for m in backbone.modules() if isinstance(m, nn.Linear)}


def _layer_scales(backbone: nn.Module, decay: float) -> dict[int, float]:
    """Layer-wise decay of the learning rate: what it is multiplied by, for the id of each weight of the backbone.

    It is decay ** depth, 1 for the last block (1 being the head's 0) and one more for each layer before it; the
    embeddings are the first layer (BEiT, Bao et al., arXiv 2106.08254, appendix; MAE, He et al., arXiv 2111.06377,
    table 9). The layers are those that timm tells, as in its param_groups_layer_decay.
    """
    if not hasattr(backbone, "group_matcher"):
        raise ConfigError(
            f"training.layer_decay: a {type(backbone).__name__} does not tell its layers; set it to 1, or use another "
            f"model.name"
        )
    # timm's own networks end with a head, and what has no layer of its own counts with it.
    named: list[tuple[str, Any]] = [*backbone.named_parameters(), ("head.weight", None)]
    layers = group_with_matcher(iter(named), backbone.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    depth = layers["head.weight"]
    return {id(p): decay ** (depth - layers[name]) for name, p in backbone.named_parameters()}


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
