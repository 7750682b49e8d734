"""The paper's whole schedule for small datasets, stage by stage: minutes, rates and accuracy.

  pretrain   800 epochs at 112 pixels, without labels (rn_configs/base/pretrain.yaml)
  finetune   200 epochs at 224 pixels with labels, from the pretraining (rn_configs/base/finetune.yaml)
  random     the same from random weights
  ladder     800 epochs at 224 pixels from the pretraining, then 100 at 448 (progressive.stages there)

The stages are those of train_idmm.py and finetune.py: the same functions, the same recipes. Called again with the same
arguments, it leaves out what is done, and resumes what was stopped from its last checkpoint. A call that was killed
counts up to the last step that it logged. --epochs-scale shortens everything; the warm-up is then a tenth of the epochs
at most.

The minutes of a stage are all that it takes: start, compilation, training, evaluation, checkpoints. Compilation is what
torch's own clock says, and 0 for a call that was killed. Rates are those after the first epoch of each start. FLOP are
the model's, forward and backward.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..config import ConfigError, keys, load_yaml, make_config, overrides, replace
from ..config.finetune import SCHEMA as FINETUNE
from ..config.load import PACKAGED, Schema, Values, load_config
from ..config.pretrain import SCHEMA as PRETRAIN
from ..evaluate.online import OnlineEvaluation
from ..lock import Lock
from ..runtime.device import resolve_runtime
from ..train.finetuning import Finetuning, finetune
from ..train.pretraining import Pretraining, pretrain
from ..train.stages import run_stages
from ..train.task import Task
from . import paper_figures as figures
from .paper_report import Report, minutes_of, table

STAGES = ("pretrain", "finetune", "random", "ladder")
RECIPES = PACKAGED


@dataclass(frozen=True)
class Part:
    """A training: a stage, or a rung of the ladder.

    Args:
        name: Of its results.
        folder: Its run folder.
        cfg: A configuration of `schema`.
        train: Trains by `cfg` what is not trained yet, and returns the results of the evaluation, {} for none.
        schema, task: What kind of training it is.
    """

    name: str
    folder: Path
    cfg: SimpleNamespace
    train: Callable[[SimpleNamespace], dict[str, Any]]
    schema: Schema
    task: Callable[[SimpleNamespace], Task]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what is not done yet, measure and print; see `benchmark.py paper --help`.

    Raises:
        ConfigError: An argument can't be used, or --out holds the results of others.
        And what training raises.
    """
    stages = choose_stages(args.stages)
    if args.json is not None and args.json.suffix == ".md":
        raise ConfigError(f"--json {args.json}: the table is written as .md beside it; name it otherwise")
    for name, path in (("train", args.train), ("test", args.test)):
        if not path.exists():
            raise ConfigError(f"--{name} {path} does not exist; make it with: idmm-fast convert (see --help)")
    recipes = Recipes(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with Lock(args.out / ".lock", f"the folder {args.out}"):
        report = Report(args)
        if "pretrain" not in stages and not report.is_done("pretrain"):
            for stage in stages:
                if stage != "random":
                    raise ConfigError(
                        f"{stage} starts from the pretraining, which is not done in {args.out}; "
                        f"give --stages pretrain,{','.join(stages)}"
                    )
        parts = [part for stage in stages for part in recipes.parts(stage)]
        for part in {part.task: part for part in parts if not report.is_done(part.name)}.values():
            figures.make_task_on_cpu(part.task, part.schema, part.cfg)  # what is wrong in any stage is said now
        with report.timed(report.content["calls"], args.out, args.began, command=args.command_line):
            for part in parts:
                if report.is_done(part.name):
                    print(f"{part.name}: done before", flush=True)
                else:
                    run_part(report, part)
        print(report.page(), flush=True)
    return report.content


def choose_stages(text: str) -> list[str]:
    """The stages of a comma-separated list, in the order in which they run. Raises ConfigError."""
    named = [name.strip() for name in text.split(",")]
    for name in named:
        if name not in STAGES:
            raise ConfigError(f"--stages: there is no stage '{name}'; there are {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in named]


class Recipes:
    """The configurations of the stages: the files of rn_configs under what the arguments change.

    Raises:
        ConfigError: --model, --options, --override or --epochs-scale can't be used.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if not args.epochs_scale > 0:
            raise ConfigError(f"--epochs-scale {args.epochs_scale:g} is not above 0")
        self._out, self._scale = args.out, args.epochs_scale
        known = [*keys(PRETRAIN), *keys(FINETUNE)]
        given = overrides(known, [f"--{text}" for text in args.override])
        if "training.minutes" in given:
            raise ConfigError("--override training.minutes: the schedule is the paper's, in epochs; use --epochs-scale")
        self._given = {
            "model.name": args.model,
            "model.options": args.options,
            **given,
            "data.train": str(args.train),
            "data.test": str(args.test),
            "training.resume": "auto",
        }
        self._pretrain = self._make(PRETRAIN, "base/pretrain.yaml", f"backbones/{args.model}.yaml", "pretrain")
        self._finetune = self._make(FINETUNE, "base/finetune.yaml", f"finetune/backbones/{args.model}.yaml", "finetune")

    def _make(self, schema: Schema, base: str, backbone: str, name: str) -> SimpleNamespace:
        """The configuration of a stage, with its epochs scaled."""
        values: Values = load_yaml(schema, RECIPES / base)
        if (RECIPES / backbone).exists():
            values |= load_yaml(schema, RECIPES / backbone)
        values |= {key: value for key, value in self._given.items() if key in keys(schema)}
        cfg = make_config(schema, values | {"logging.run_dir": str(self._out / name)})
        changes = self._scaled(cfg.training.epochs, cfg.training.warmup_epochs)
        if schema is FINETUNE:
            changes["logging.report"] = False  # pictures are no part of the schedule's minutes
            changes["progressive.stages"] = [
                stage
                | self._scaled(
                    stage.get("training.epochs", cfg.training.epochs),
                    stage.get("training.warmup_epochs", cfg.training.warmup_epochs),
                )
                for stage in cfg.progressive.stages
            ]
        return replace(schema, cfg, changes)

    def _scaled(self, epochs: int, warmup: float) -> Values:
        epochs = max(1, round(epochs * self._scale))
        return {
            "training.epochs": epochs,
            "training.warmup_epochs": min(warmup, epochs / 10) if self._scale < 1 else warmup,
        }

    def parts(self, stage: str) -> list[Part]:
        """The trainings of a stage."""
        folder, start = self._out / stage, str(self._out / "pretrain")
        if stage == "pretrain":
            return [pretraining_part(self._pretrain)]
        changes = {"logging.run_dir": str(folder), "model.init": None if stage == "random" else start}
        cfg = replace(FINETUNE, self._finetune, changes)
        if stage != "ladder":
            return [Part(stage, folder, cfg, finetune, FINETUNE, Finetuning)]
        rungs = range(1, len(cfg.progressive.stages) + 1)
        return [
            Part(f"{stage}_{k}", folder / f"stage_{k}", cfg, partial(_climb, rung=k), FINETUNE, Finetuning)
            for k in rungs
        ]


def pretraining_part(cfg: SimpleNamespace) -> Part:
    """The pretraining of a configuration."""
    return Part("pretrain", Path(cfg.logging.run_dir), cfg, _pretrain, PRETRAIN, Pretraining)


def _pretrain(cfg: SimpleNamespace) -> dict[str, Any]:
    pretrain(cfg, OnlineEvaluation(cfg))
    return {}


def _climb(cfg: SimpleNamespace, rung: int) -> dict[str, Any]:
    """Run the ladder up to a rung (1, 2, ...); those below it are done, which run_stages sees by itself."""
    stages = cfg.progressive.stages[:rung]
    return run_stages(replace(FINETUNE, cfg, {"progressive.stages": stages}))[-1]


def run_part(report: Report, part: Part) -> None:
    """Train a part to its end, and put its figures into the report."""
    state = report.content["parts"].setdefault(part.name, {"calls": []})
    with report.timed(state["calls"], part.folder, time.perf_counter()) as call:
        found = train_part(part, call)
    state |= measure(part, state["calls"]) | {key: found[key] for key in ("top1", "top5") if key in found}
    state["done"] = True
    report.write()
    print(table({part.name: state}), flush=True)


def train_part(part: Part, call: dict[str, Any]) -> dict[str, Any]:
    """Train what is left of a part and return its results.

    Args:
        part: The training.
        call: "compile_seconds" and "peak_memory_mb" are noted here, even if the training ends early.
    """
    runtime = resolve_runtime(part.cfg.training, 0)
    figures.forget_trainings()
    figures.reset_peak_memory(runtime)
    compiled = figures.compile_seconds()
    try:
        return part.train(part.cfg)
    finally:
        call["compile_seconds"] = figures.compile_seconds() - compiled
        call["peak_memory_mb"] = figures.peak_memory_mb(runtime)


def measure(part: Part, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a training that is done.

    Args:
        part: The training.
        calls: What Report.timed and train_part noted of it.
    """
    cfg = load_config(part.schema, part.folder / "config.yaml", {}, ())
    task = figures.make_task_on_cpu(part.task, part.schema, cfg)
    images, crops = int(task.loader.indices.size), sum(view.count for view in task.loader.views)
    flop = figures.flop_per_image(task)
    runtime = resolve_runtime(cfg.training, cfg.training.epochs * -(-images // cfg.training.batch_size))
    rates = figures.training_rates(part.folder, images, cfg.training.batch_size)
    return {
        "model": cfg.model.name,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "epochs": cfg.training.epochs,
        "image_size": cfg.model.image_size,
        "batch_size": cfg.training.batch_size,
        "images": images,
        "crops": crops,
        "runtime": str(runtime),
        "minutes": minutes_of(calls),
        "compile_minutes": sum(call.get("compile_seconds", 0.0) for call in calls) / 60,
        **rates,
        "crops_per_s": rates["images_per_s"] * crops,
        "gflop_per_image": flop / 1e9,
        **figures.device_rates(runtime, flop * rates["images_per_s"]),
        "peak_memory_mb": max(call.get("peak_memory_mb", 0.0) for call in calls),
    }
