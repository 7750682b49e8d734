"""All judgements of one pretraining, as `evaluate.py` and the demo ask for them."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..beton import open_beton
from ..config import ConfigError
from ..config.evaluate import MINUTES
from ..config.load import find_run_config
from ..models import create_backbone, load_backbone
from ..plots.neighbours import plot_neighbours
from ..runtime.device import choose
from .accuracy import check_same_classes
from .features import extract
from .knn import knn_accuracy
from .linear import linear_accuracy


def run_config(argv):
    """The arguments that name the config.yaml of the run that --checkpoint names, or none. Raises ConfigError if it is not there."""
    for k, arg in enumerate(argv):
        name, eq, value = arg.partition("=")
        if name in ("--checkpoint", "--model.init"):
            value = value if eq else argv[k + 1] if k + 1 < len(argv) else ""
            if value.lower() not in ("", "none", "null", "~") and not Path(value).exists():
                raise ConfigError(
                    f"{value} does not exist; {name} is a run folder, a checkpoint in it or a .safetensors file"
                )
            found = find_run_config(value)
            if found:
                return ["--config", str(found)]
    return []


class OnlineEvaluation:
    """For `pretrain`: the features as they are now, judged by nearest neighbours, and with online_eval.linear by a linear probe.

    Raises ConfigError where data.test is missing.
    """

    def __init__(self, cfg):
        if cfg.online_eval.every and cfg.data.test is None:
            raise ConfigError("online_eval.every needs data.test, the beton whose images are classified")
        self.cfg = cfg

    def check(self):
        """Do before training what could fail after hours of it: both betons are opened and compared, and a few images of each judged by a
        backbone with random weights, which draws nothing from torch's generator.

        Raises BetonError, FileNotFoundError, LoaderError, ValueError.
        """
        if not self.cfg.online_eval.every:
            return
        model, first = self.cfg.model, open_beton(self.cfg.data.train).label
        if self.cfg.online_eval.linear and (first == first[0]).all():
            raise ConfigError(
                f"online_eval.linear needs images of two classes; those of {self.cfg.data.train} are all of one"
            )
        few = [
            np.unique([*range(min(8, len(b))), (b != b[0]).argmax()])
            for b in (first, open_beton(self.cfg.data.test).label)
        ]
        with torch.random.fork_rng(devices=[]):
            backbone = create_backbone(model.name, model.image_size, 0.0, model.options)
        machine = choose(self.cfg.training, 0)
        self._score(machine.place(backbone), machine, few)

    def __call__(self, backbone, machine):
        """{"knn10", "knn20", and with linear "linear"}, percent."""
        return self._score(backbone, machine)

    def _score(self, backbone, machine, rows=(None, None)):
        cfg = self.cfg
        train, test = open_beton(cfg.data.train), open_beton(cfg.data.test)
        check_same_classes(train, test)
        features, found = _features(backbone, (train, test), cfg.model.image_size, machine, cfg.data, rows=rows)
        labels = [torch.from_numpy(b.label)[r] for b, r in zip((train, test), found)]
        return score(features, labels, cfg.online_eval.linear)


def _features(backbone, betons, size, machine, data, batch_size=256, rows=(None, None)):
    """([features], [rows]) of the betons (train, test); `data` is the section of a configuration."""
    return zip(
        *(
            extract(backbone, b.path, size, machine, batch_size, data.num_workers, r, data.on_error)
            for b, r in zip(betons, rows)
        )
    )


def score(features, labels, linear, temperature=0.07, strength=1.0, minutes=MINUTES):
    """{"knn10", "knn20", and with `linear` "linear" unless that takes too long}, percent; features and labels of (train, test)."""
    results = knn_accuracy(features[0], labels[0], features[1], labels[1], temperature=temperature)
    if linear:
        found = linear_accuracy(features[0], labels[0], features[1], labels[1], strength, minutes)
        if found is None:
            tqdm.write(
                f"the linear probe takes more than {minutes:g} minutes, so there is no number for it (linear.max_minutes)"
            )
        else:
            results["linear"] = found
    return results


def evaluate_frozen(cfg):
    """{"knn10", "knn20", "linear"}, percent on data.test, of the frozen features of `cfg.model` (see SCHEMA).

    No "linear" without linear.enabled, or where that takes too long. "images_skipped", a number, where some can't be decoded
    and data.on_error is replace.

    Raises ConfigError, BetonError, FileNotFoundError, LoaderError, ValueError.
    """
    if cfg.data.test is None:
        raise ConfigError("data.test is required: the beton whose images are classified")
    torch.manual_seed(cfg.training.seed)
    train, test = open_beton(cfg.data.train), open_beton(cfg.data.test)
    check_same_classes(train, test)
    backbone = create_backbone(cfg.model.name, cfg.model.image_size, 0.0, cfg.model.options)
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init)
    machine = choose(cfg.training, 0)
    size = cfg.model.image_size
    features, rows = _features(machine.place(backbone), (train, test), size, machine, cfg.data, cfg.training.batch_size)
    labels = [torch.from_numpy(b.label)[r] for b, r in zip((train, test), rows)]
    results = score(features, labels, cfg.linear.enabled, cfg.knn.temperature, cfg.linear.C, cfg.linear.max_minutes)
    skipped = len(train) + len(test) - sum(map(len, rows))
    if skipped:
        results["images_skipped"] = skipped
    if cfg.logging.run_dir is not None:
        folder = Path(cfg.logging.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        plot_neighbours(
            train.path,
            features[0],
            test.path,
            features[1],
            folder / "neighbours.png",
            labels=(train.label, test.label, train.classes),
            rows=rows,
            seed=cfg.training.seed,
            size=max(size, 64),
        )
    return results
