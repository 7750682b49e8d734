"""Weights in files of ours and of others, or timm's own by name; and the normalisation that they were made with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from ..config import BY_NAME, read_run_config

# What weights are wrapped in, and which of several is taken: the first. `average` is the moving average of ours.
_CONTAINERS = ("average", "model", "state_dict", "teacher", "student")


def read_weights(source: str | Path, wanted: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Read weights. Nothing is unpickled but tensors, plain values and argparse.Namespace.

    Prefixes that wrappers leave before the keys (`module.`, `_orig_mod.`, `backbone.`, `teacher.`, ...) are taken off.

    Args:
        source: a run folder, a checkpoint of this project or of others, a `.safetensors` file; or `timm:NAME`, weights
            that timm has, looked for in its cache and then in the network.
        wanted: keys of the backbone that the weights are for.

    Returns:
        {key: tensor}, of the backbone with its own keys, and of a classifier with `head.` before them.

    Raises:
        ValueError: the file is missing or damaged, or timm has no such weights.
    """
    if str(source).startswith(BY_NAME):
        return _from_timm(str(source).removeprefix(BY_NAME))
    path = weights_file(source)
    if not path.exists():
        if Path(source).is_dir() and (path.parent / "checkpoints").is_dir():
            raise ValueError(
                f"{path.parent} is a training that has not ended: resume it (--training.resume=auto), or name a file "
                f"in {path.parent / 'checkpoints'}"
            )
        raise ValueError(
            f"{path} does not exist; name a run folder of a finished training, a checkpoint or a .safetensors file, "
            f"or timm's own weights: {BY_NAME}NAME"
        )
    return _unprefixed(_read_file(path), list(wanted))


def weights_file(source: str | Path) -> Path:
    """The file that weights are read from, which may not be there: of a run folder its backbone's or its model's."""
    path = Path(source)
    if not path.is_dir():
        return path
    known = [path / "backbone.safetensors", path / "model.safetensors"]
    return next((file for file in known if file.exists()), known[0])


def normalization_of(source: str | Path | None) -> dict[str, list[float]]:
    """The normalisation that weights were made with.

    Args:
        source: as for `read_weights`; None: none.

    Returns:
        {"mean": [...], "std": [...]} of the run, of the config.json (timm's form) beside the file, or of timm's own
        weights; {} where nothing says so, and for a run that has the usual one.

    Raises:
        ValueError: timm has no such weights.
    """
    if source is None:
        return {}
    if str(source).startswith(BY_NAME):
        return _normalization(_timm_cfg(str(source).removeprefix(BY_NAME)).to_dict())
    if run := read_run_config(source):
        return _normalization(run["model"])
    path = Path(source)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return _normalization(content.get("pretrained_cfg", content)) if isinstance(content, dict) else {}


def resolve_normalization(model: Any) -> dict[str, list[float]]:
    """The values of model.mean and model.std that the configuration leaves to the weights of model.init.

    Args:
        model: the section `model`: init, mean, std.

    Returns:
        {"model.mean": [...], "model.std": [...]}, of them those that are not set and that the weights bring.
    """
    return {f"model.{k}": v for k, v in normalization_of(model.init).items() if getattr(model, k) is None}


def _normalization(section: Mapping[str, Any]) -> dict[str, list[float]]:
    found = {key: section.get(key) for key in ("mean", "std")}
    return {key: [float(x) for x in value] for key, value in found.items() if value}


def _timm_cfg(name: str) -> Any:
    """timm's pretrained_cfg of a name like deit_tiny_patch16_224.fb_in1k."""
    try:
        cfg = timm.get_pretrained_cfg(name)
    except Exception as error:  # timm raises many kinds
        raise ValueError(f"timm has no weights '{name}': {error}") from error
    if cfg is None or not cfg.has_weights:
        known = timm.list_pretrained(f"{name.partition('.')[0]}*")[:5]
        hint = f"It has {', '.join(known)}." if known else "timm.list_pretrained() lists all names."
        raise ValueError(f"timm has no weights '{name}'. {hint}")
    return cfg


def _from_timm(name: str) -> dict[str, torch.Tensor]:
    """The weights that timm's own loader gets by name."""
    _timm_cfg(name)
    try:
        with torch.random.fork_rng(devices=[]):  # the model is made with random weights first
            return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # of the network, of the cache, of the file
        raise ValueError(
            f"timm could not load '{name}' ({type(error).__name__}): its weights are not in the cache (HF_HOME), or "
            f"damaged, or there is no network. Fetch them where there is one, and name the .safetensors file instead"
        ) from error


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, out of what they are wrapped in."""
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that MAE, DINO and DeiT save
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise ValueError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}); a .safetensors file is safer"
        ) from error
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _CONTAINERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    weights = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, Mapping) else {}
    if not weights:
        raise ValueError(f"{path} holds no weights: no tensors by name, and none under {', '.join(_CONTAINERS)}")
    return weights


def _unprefixed(weights: dict[str, torch.Tensor], wanted: list[str]) -> dict[str, torch.Tensor]:
    """The weights under the prefix that most of the keys `wanted` have in a file; those of a classifier too."""
    if not wanted:
        return weights
    counts = {"": sum(key in weights for key in wanted)}
    for key in wanted[:3] + wanted[-3:]:  # some of them are enough to know every prefix
        for found in weights:
            prefix = found[: -len(key)]
            if found.endswith(f".{key}") and prefix not in counts:
                counts[prefix] = sum(prefix + other in weights for other in wanted)
    best = min(counts, key=lambda prefix: (-counts[prefix], *_rank(prefix)))
    if not best or not counts[best]:
        return weights
    inner = {k.removeprefix(best): v for k, v in weights.items() if k.startswith(best)}
    above = best[:-1].rpartition(".")[0]  # the classifier may lie beside the backbone
    head = f"{above}.head." if above else "head."
    return {f"head.{k.removeprefix(head)}": v for k, v in weights.items() if k.startswith(head)} | inner


def _rank(prefix: str) -> tuple[bool, bool, int, str]:
    """Of prefixes that fit as well: the network itself before a moving average, a teacher before a student."""
    parts = prefix.split(".")
    ours = prefix == "backbone."
    return not ours and "teacher" not in parts, "student" in parts, len(parts), prefix
