"""All judgements of one pretraining, as `evaluate.py` and the demo ask for them."""

from pathlib import Path

import torch

from ..beton import open_beton
from ..config import ConfigError, Number, Param, Text, Whole
from ..models import create_backbone, load_backbone
from ..train import settings
from ..train.device import choose
from ..train.run import config_of
from .features import extract
from .knn import knn_accuracy
from .linear import linear_accuracy
from .neighbours import draw_neighbours

SCHEMA = {
    "data": settings.data(test=True),
    "model": (
        "the backbone",
        {
            **settings.MODEL[1],
            "init": Param(
                Text(), "run folder, checkpoint or .safetensors to judge; none: random weights", default=None
            ),
        },
    ),
    "knn": ("nearest neighbours", {"temperature": Param(Number(1e-6), "of the votes", default=0.07)}),
    "linear": (
        "the linear probe",
        {"strength": Param(Number(1e-9), "C of scikit-learn's LogisticRegression", default=1.0)},
    ),
    "training": (
        "how it is computed",
        {
            **{k: settings.training(0, 1)[1][k] for k in ("device", "amp", "channels_last", "compile")},
            "batch_size": Param(Whole(1), "images at a time", default=256),
            "seed": Param(Whole(0), "of random weights, and of which images the picture shows", default=0),
        },
    ),
    "logging": (
        "what is written",
        {"run_dir": Param(Text(), "folder for neighbours.png; none: no picture", default=None)},
    ),
}


def run_config(argv):
    """The arguments that name the config.yaml of the run that --checkpoint names, or none."""
    for k, arg in enumerate(argv):
        name, eq, value = arg.partition("=")
        if name in ("--checkpoint", "--model.init"):
            found = config_of(value if eq else argv[k + 1] if k + 1 < len(argv) else "")
            if found:
                return ["--config", str(found)]
    return []


class Probe:
    """For `pretrain`: the features as they are now, judged by nearest neighbours, and with probe.linear by a linear probe.

    Raises ConfigError where data.test is missing.
    """

    def __init__(self, cfg):
        if cfg.probe.every and cfg.data.test is None:
            raise ConfigError("probe.every needs data.test, the beton whose images are classified")
        self.cfg = cfg

    def __call__(self, backbone, machine):
        """{"knn10", "knn20", and with linear "linear"}, percent."""
        train, test = open_beton(self.cfg.data.train), open_beton(self.cfg.data.test)
        features = [extract(backbone, b.path, self.cfg.model.image_size, machine, num_workers=self.cfg.data.num_workers) for b in (train, test)]
        return score(features, [torch.from_numpy(b.label) for b in (train, test)], self.cfg.probe.linear)


def score(features, labels, linear, temperature=0.07, strength=1.0):
    """{"knn10", "knn20", and with `linear` "linear"}, percent; features and labels of (train, test)."""
    results = knn_accuracy(features[0], labels[0], features[1], labels[1], temperature=temperature)
    if linear:
        results["linear"] = linear_accuracy(features[0], labels[0], features[1], labels[1], strength)
    return results


def judge(cfg, linear=True):
    """{"knn10", "knn20", and with `linear` "linear"}, percent on data.test, of the frozen features of `cfg.model` (see SCHEMA)."""
    if cfg.data.test is None:
        raise ConfigError("data.test is required: the beton whose images are classified")
    torch.manual_seed(cfg.training.seed)
    train, test = open_beton(cfg.data.train), open_beton(cfg.data.test)
    backbone = create_backbone(cfg.model.name, cfg.model.image_size, 0.0, cfg.model.options)
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init)
    machine = choose(cfg.training, 0)
    backbone = machine.place(backbone)
    size, batch, workers = cfg.model.image_size, cfg.training.batch_size, cfg.data.num_workers
    features = [extract(backbone, b.path, size, machine, batch, workers) for b in (train, test)]
    labels = [torch.from_numpy(b.label) for b in (train, test)]
    results = score(features, labels, linear, cfg.knn.temperature, cfg.linear.strength)
    if cfg.logging.run_dir is not None:
        folder = Path(cfg.logging.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        draw_neighbours(
            train.path, features[0], test.path, features[1], folder / "neighbours.png",
            labels=(train.label, test.label, train.classes), seed=cfg.training.seed, size=max(size, 64),
        )  # fmt: skip
    return results
