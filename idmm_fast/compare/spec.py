"""A run of a sweep and its budget, and the sweep file that says how each is trained. No torch here."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..config import ConfigError, flatten, load_yaml, make_config
from ..config.evaluate import SCHEMA as EVALUATE
from ..config.finetune import SCHEMA as FINETUNE
from ..config.load import PACKAGED, read_tree
from ..config.pretrain import SCHEMA as PRETRAIN

Config = SimpleNamespace  # what idmm_fast.config makes: cfg.section.key
Values = dict[str, Any]  # {"section.key": value}

RANDOM = "random"  # the method that does not pretrain
SAME = "same"  # the target that means: fine-tuned on the images of the pretraining
NUMBERS = ("warmup_fraction", "min_crop_scale")
TOP_LEVEL_KEYS = ("model", "pretrain", "finetune", "methods", *NUMBERS)


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep: a pretraining, the evaluation of its frozen features, and a fine-tuning.

    Args:
        dataset: What is pretrained on; see `beton_path`.
        images: How many of its images are used; 0 for all.
        sampling: How these are chosen, "balanced" over the classes or "random".
        method: A method of rn_configs/methods/, one of the sweep file, or "random" for no pretraining.
        seed: Seed of the choice of images and of all trainings.
        budget: Crops seen in pretraining; 0 for "random", and where only `minutes` are known.
        target: What is fine-tuned on; "same" for the images of the pretraining.
        finetune_budget: Crops seen in fine-tuning.
        minutes: In which the method makes `budget` crops, see rates.py; 0 where the budget itself was asked for.
    """

    dataset: str
    images: int
    sampling: str
    method: str
    seed: int
    budget: int
    target: str
    finetune_budget: int
    minutes: float = 0.0

    @property
    def pretrain_key(self) -> tuple:
        """What runs that start from the same weights have in common."""
        return (self.dataset, self.images, self.sampling, self.method, self.seed, self.budget)

    def __str__(self) -> str:
        images = f" {self.images} {self.sampling}" if self.images else ""
        target = "" if self.target == SAME else f" -> {self.target}"
        budgets = f"{f'{self.minutes:g} min ' if self.minutes else self.budget}+{self.finetune_budget}"
        return f"{self.dataset}{images}{target}, {self.method}, seed {self.seed}, {budgets}"


def beton_path(folder: Path | str, dataset: str, split: str) -> Path:
    """FOLDER/NAME_train.beton or FOLDER/NAME_test.beton; a `dataset` that is a path has its own folder."""
    path = Path(dataset) if os.sep in dataset else Path(folder) / dataset
    return path.with_name(f"{path.name}_{split}.beton")


def parse_budget(text: str, images: int) -> int:
    """The number of crops that a budget means.

    Args:
        text: A number of crops like "400000" or "4e5", or of crops per image like "4800x".
        images: How many images the training has.

    Raises:
        ConfigError: The text is no such number, or below 1, or infinite.
    """
    try:
        number = float(text.removesuffix("x")) * (images if text.endswith("x") else 1)
        if not 1 <= number < float("inf"):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"a budget is a number of crops like 400000, or of crops per image like 4800x, not {text}"
        ) from None
    return int(number)


class SweepConfig:
    """A sweep file like rn_configs/compare/small.yaml.

    Its keys: `model`; `pretrain` and `finetune`, what all trainings of a kind share; `methods`, what single methods
    have of their own, or have different from their `base`; `warmup_fraction`, of the epochs of every training (without
    it each warms up as its own file says); `min_crop_scale`, the least part of an image that a crop shows.

    Raises:
        ConfigError: There is no such file, it is not YAML, it has a key that is not one of these or whose value is no
            mapping or number, or a method is no mapping or, by its bases, a variant of itself.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ConfigError(f"{path} does not exist; start from rn_configs/compare/small.yaml")
        self.tree: dict[str, Any] = read_tree(self.path)
        for key in self.tree:
            if key not in TOP_LEVEL_KEYS:
                raise ConfigError(f"{path}: there is no key '{key}'; there are {', '.join(TOP_LEVEL_KEYS)}")
            if key not in NUMBERS and not isinstance(self.tree[key] or {}, dict):
                raise ConfigError(f"{path}: {key} must be a mapping, not {self.tree[key]}")
        self.min_crop_scale = self._read_number("min_crop_scale") or 0.0
        self._warmup_fraction = self._read_number("warmup_fraction")
        self._methods: dict[str, Values] = self._read_methods()

    def _read_number(self, key: str) -> float | None:
        """The number of a key; None where it has none."""
        value = self.tree.get(key)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{self.path}: {key} must be a number, not {value}") from None

    def _read_methods(self) -> dict[str, Values]:
        """{method: what it has of its own}."""
        found = {str(name): own or {} for name, own in (self.tree.get("methods") or {}).items()}
        for name, own in found.items():
            if not isinstance(own, dict):
                raise ConfigError(f"{self.path}: methods.{name} must be a mapping, not {own}")
            if not isinstance(own.get("base", name), str):
                raise ConfigError(f"{self.path}: methods.{name}.base must be the name of a method, not {own['base']}")
        for name in found:
            bases = [name]
            while (base := found.get(bases[-1], {}).get("base")) is not None:
                if base in bases:
                    raise ConfigError(
                        f"{self.path}: methods.{name} is a variant of itself: {' -> '.join([*bases, base])}"
                    )
                bases.append(base)
        return found

    def base_method(self, method: str) -> str:
        """The method that `method` is a variant of; itself if it is none."""
        return str(self._methods.get(method, {}).get("base", method))

    def pretrain_config(self, run: RunSpec, train: Path | str, images: int, folder: Path | str) -> Config | None:
        """The configuration of a pretraining.

        Args:
            run: What is run.
            train: The beton that it is trained on.
            images: How many images that has.
            folder: The run folder.

        Returns:
            None where the method is "random".

        Raises:
            ConfigError: The method, a key or a value is not known, or there is training.minutes.
        """
        if run.method == RANDOM:
            return None
        values = self._method_values(run.method)
        groups = make_config(PRETRAIN, {"data.train": "x", "logging.run_dir": "x", **values}).crops.groups
        for group in groups:
            group["scale"] = [max(scale, self.min_crop_scale) for scale in group["scale"]]
        epochs = max(1, round(run.budget / (images * sum(group["count"] for group in groups))))
        common = self._common(run, train, epochs, folder)
        return self._check_length(make_config(PRETRAIN, {**values, "crops.groups": groups, **common}), "--minutes")

    def finetune_config(
        self, run: RunSpec, betons: tuple[Path | str, Path | str], images: int, init: Path | None, folder: Path | str
    ) -> Config:
        """The configuration of a fine-tuning.

        Args:
            run: What is run.
            betons: What it is trained on and what it is tested on.
            images: How many images it is trained on, see `finetuned_images`.
            init: The pretrained weights; None to train from scratch.
            folder: The run folder.

        Raises:
            ConfigError: As `pretrain_config` does.
        """
        epochs = max(1, round(run.finetune_budget / images))
        train, test = betons
        values = {
            "training.evaluate_every": max(1, epochs // 6),
            "logging.report": False,
            **self._shared_values(FINETUNE, "finetune"),
            "data.test": str(test),
            "model.init": init and str(init),
            **self._common(run, train, epochs, folder),
        }
        return self._check_length(make_config(FINETUNE, values), "--finetune-budget")

    def finetuned_images(self, labels: np.ndarray, seed: int) -> int:
        """How many of some images a fine-tuning is trained on: those with a label, or data.per_class of each class.

        Args:
            labels: int64 (images,).
            seed: Of the run.

        Raises:
            ConfigError: A class has fewer images, or no image has a label.
        """
        from ..train.finetuning import choose_rows

        if (labels < 0).all():
            raise ConfigError("a fine-tuning is trained on labels, and none of its images has one; see --targets")
        shared = self._shared_values(FINETUNE, "finetune")
        required = {"data.train": "x", "data.test": "x", "logging.run_dir": "x"}
        return len(choose_rows(labels, make_config(FINETUNE, required | shared).data.per_class, seed))

    def evaluate_config(self, finetune: Config, betons: tuple[Path | str, Path | str], init: Path | None) -> Config:
        """The configuration that evaluates frozen features: for all methods at the resolution of `pretrain`.

        Args:
            finetune: The configuration of the fine-tuning from the same weights.
            betons: The images with labels, and those that are classified.
            init: The pretrained weights; None for random weights.
        """
        size = self._shared_values(PRETRAIN, "pretrain").get("model.image_size")
        values = {
            "data.train": str(betons[0]),
            "data.test": str(betons[1]),
            "model.init": init and str(init),
            "model.image_size": PRETRAIN["model"][1]["image_size"].default if size is None else size,
            "model.name": finetune.model.name,
            "model.options": finetune.model.options,
            "model.mean": finetune.model.mean,
            "model.std": finetune.model.std,
            "data.on_error": finetune.data.on_error,
            "training.seed": finetune.training.seed,
            "training.device": finetune.training.device,
            "training.amp": finetune.training.amp,
        }
        return make_config(EVALUATE, values)

    def _shared_values(self, schema: dict, training: str) -> Values:
        """What all trainings of a kind, "pretrain" or "finetune", have in common."""
        model = flatten(schema, {"model": self.tree.get("model", {})}, str(self.path))
        return model | flatten(schema, self.tree.get(training), str(self.path))

    def _method_values(self, method: str) -> Values:
        """What the pretrainings of a method have in common."""
        own = dict(self._methods.get(method, {}))
        base = own.pop("base", None)
        if base is not None:
            values = self._method_values(base)
        else:
            files = self._method_files()
            if method not in files:
                known = set(files)
                for _ in self._methods:  # variants of variants
                    known |= {name for name, own in self._methods.items() if own.get("base") in known}
                raise ConfigError(f"there is no method '{method}'; there are {', '.join(sorted({*known, RANDOM}))}")
            values = load_yaml(PRETRAIN, files[method]) | self._shared_values(PRETRAIN, "pretrain")
        return values | flatten(PRETRAIN, own, f"{self.path}, methods.{method}")

    def _method_files(self) -> dict[str, Path]:
        """{method: its file} of the folders `methods` beside the sweep file, beside its folder, and that come along."""
        beside = self.path.absolute().parent
        folders = [folder / "methods" for folder in (PACKAGED, beside.parent, beside)]
        return {file.stem: file for folder in folders for file in folder.glob("*.yaml")}

    def _check_length(self, cfg: Config, option: str) -> Config:
        """`cfg`, whose length is that of its run and not its own."""
        if cfg.training.minutes:
            raise ConfigError(
                f"{self.path}: a training of this sweep has training.minutes={cfg.training.minutes:g}, which would end "
                f"it whatever its budget is; leave it out, and give {option}"
            )
        return cfg

    def _common(self, run: RunSpec, train: Path | str, epochs: int, folder: Path | str) -> Values:
        """What the configurations of both trainings have."""
        fraction = self._warmup_fraction
        warmup = {} if fraction is None else {"training.warmup_epochs": fraction * epochs}
        return {
            "data.train": str(train),
            "training.epochs": epochs,
            **warmup,
            "training.seed": run.seed,
            "training.resume": "auto",
            "training.keep_checkpoints": 1,
            "training.checkpoint_every": 1 << 20,
            "logging.run_dir": str(folder),
        }


def digest(*what: Any) -> str:
    """Eight hex digits that differ where `what`, as JSON, differs."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
