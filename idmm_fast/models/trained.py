"""Networks of finished runs: the backbone, or the classifier with the names of its classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from ..config import ConfigError, find_run_config, read_run_config
from ..runtime.device import Runtime, resolve_runtime
from .backbone import create_backbone, feature_dim
from .head import Classifier, init_head
from .normalize import Normalize
from .weights import load_backbone


@dataclass(frozen=True)
class TrainedNetwork:
    """What a run made.

    Attributes:
        network: from uint8 images (B, 3, S, S) to features of a pretraining, or logits of a fine-tuning; in evaluation
            mode, on the CPU.
        size: S, pixels.
        label_names: the classes, in the order of the logits; [] of a pretraining.
        training: the section `training` of the run's configuration.
    """

    network: torch.nn.Module
    size: int
    label_names: list[str]
    training: SimpleNamespace

    def runtime(self, device: str | None = None) -> Runtime:
        """Where and how precisely to compute: as the run was evaluated, as far as this machine can.

        Args:
            device: "auto", "cpu" or "cuda"; None: the run's, or the CPU where there is no GPU.

        Raises:
            ConfigError: there is no GPU for "cuda".
        """
        has_gpu = torch.cuda.is_available()
        device = device or (self.training.device if has_gpu else "cpu")
        amp = self.training.amp
        if amp == "fp16" and not (device != "cpu" and has_gpu):
            amp = "auto"
        chosen = SimpleNamespace(device=device, amp=amp, channels_last=self.training.channels_last, compile=False)
        return resolve_runtime(chosen, 0)


_AUTO = {"device": "auto", "amp": "auto", "channels_last": "auto", "compile": "auto"}


def load_trained(checkpoint: str | Path, image_size: int | None = None, features: bool = False) -> TrainedNetwork:
    """Load the network of a run.

    Args:
        checkpoint: a run folder, or a file in it.
        image_size: side of the input in pixels; None: the run's.
        features: whether the classifier of a fine-tuning is left out, and images are normalised as in pretraining.

    Raises:
        ConfigError: the checkpoint is in no run folder, or image_size is below 1.
        ValueError: its weights can't be read, or do not fit.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size is at least 1, not {image_size}")
    config = read_run_config(checkpoint)
    if not config:
        raise ConfigError(
            f"{checkpoint} is no run folder, nor a file in one: there is no config.yaml to say which model it is"
        )
    model, training = config["model"], SimpleNamespace(**(_AUTO | config.get("training", {})))
    size, mean, std = image_size or model["image_size"], model.get("mean"), model.get("std")
    backbone = create_backbone(model["name"], size, 0.0, model["options"])
    names = [] if features else _label_names(checkpoint)
    if not names:
        load_backbone(backbone, checkpoint)
        return TrainedNetwork(torch.nn.Sequential(Normalize(True, mean, std), backbone).eval(), size, [], training)
    head = init_head(feature_dim(backbone), len(names)).requires_grad_(False)
    load_backbone(backbone, checkpoint, head)
    return TrainedNetwork(Classifier(backbone, head, Normalize(False, mean, std)).eval(), size, names, training)


def _label_names(checkpoint: str | Path) -> list[str]:
    """The classes of a fine-tuning, from the checkpoint itself or the config.json of its run; [] of a pretraining."""
    path, run = Path(checkpoint), find_run_config(checkpoint)
    if path.suffix == ".pt" and path.is_file():
        try:
            return list(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["label_names"])
        except Exception:  # one without names, or a damaged one, which is refused with its reason later
            pass
    tuned = run.with_name("config.json") if run else None
    if not tuned or not tuned.is_file():
        return []
    content = json.loads(tuned.read_text(encoding="utf-8"))
    return content.get("label_names") or [f"class_{k}" for k in range(content["num_classes"])]
