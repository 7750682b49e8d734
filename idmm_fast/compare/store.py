"""results.jsonl, a line per finished run, and the digest by which a finished run is recognised."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..config import ConfigError, as_dict
from ..config.evaluate import SCHEMA as EVALUATE
from ..config.finetune import SCHEMA as FINETUNE
from ..config.pretrain import SCHEMA as PRETRAIN
from ..files import write_text
from .spec import RANDOM, Config, RunSpec, SweepConfig, digest
from .subsets import DatasetFiles, open_cached

Record = dict[str, Any]  # a line of results.jsonl
Schema = dict[str, tuple[str, dict[str, Any]]]  # {section: (description, {key: Param})}

# What runs are trained with besides their configuration; a record without `recipe` has 1. A change of code by which the
# same configuration trains differently gets a new number: a run of an older recipe does not count as done.
RECIPES = {
    1: "RandAugment, where it is on, has timm's first set of operations, whose strengths do not grow with the level "
    "and of which one made an image of 87 black",
    2: "RandAugment, where it is on, is that of the authors' released code",
}
RECIPE = max(RECIPES)

# All keys count but these. Some change nothing, or only the rounding (device, compile, channels_last). Others are told
# elsewhere: the seed by the run, files by what they hold, weights by the pretraining.
NOT_COUNTED = {
    "data.train",
    "data.test",
    "data.num_workers",
    "data.cache",
    "model.init",
    "training.seed",
    "training.device",
    "training.compile",
    "training.channels_last",
    "training.resume",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep_checkpoints",
    "training.max_nonfinite_steps",
    "online_eval.every",
    "online_eval.linear",
    "online_eval.unlabelled_every",
    "progressive.stages",
    "logging.run_dir",
    "logging.report",
}


def counted_values(schema: Schema, cfg: Config) -> dict[str, Any]:
    """{"section.key": value} of what a result depends on; the precision as this machine has it, whatever `auto` means.

    A key that is off by default counts where it is on, and one of BEFORE_THE_KEY where it has another value than that:
    so a new key leaves done what is done.
    """
    from ..runtime.device import resolve_runtime
    from ..train.run_dir import BEFORE_THE_KEY

    counted = {}
    for section, keys in as_dict(cfg).items():
        off = BEFORE_THE_KEY.get(section, {})
        for key, value in keys.items():
            default = schema[section][1][key].default
            is_off = not default and value == default
            is_off |= key in off and value == off[key]
            name = f"{section}.{key}"
            # a pretraining's own weights to begin with are told by nothing else
            counts = name not in NOT_COUNTED or (name == "model.init" and schema is PRETRAIN)
            if counts and not is_off:
                counted[name] = value
    return counted | {"training.amp": str(resolve_runtime(cfg.training, 0).amp)}


def settings_digest(run: RunSpec, config: SweepConfig, files: DatasetFiles, recipe: int = RECIPE) -> str:
    """What a run's result depends on besides the run: configuration, images and recipe.

    Returns:
        Parts joined by "-": a digest of the pretraining ("random" if there is none), one of fine-tuning and evaluation,
        and, where not all images are used, one of the rows.
    """
    _, target, test = map(open_cached, files.of(run))
    tuned = files.finetuned_images(run, config)
    finetune = config.finetune_config(run, ("x", "x"), tuned, None, "x")
    evaluate = config.evaluate_config(finetune, ("x", "x"), None)
    used = (counted_values(FINETUNE, finetune), counted_values(EVALUATE, evaluate))
    parts = [
        pretrain_digest(run, config, files, recipe),
        digest(recipe, *used, target.fingerprint, test.fingerprint),
    ]
    rows = files.rows(run)
    if rows is not None:
        parts.append(digest(rows.tolist()))
    return "-".join(parts)


def pretrain_digest(run: RunSpec, config: SweepConfig, files: DatasetFiles, recipe: int = RECIPE) -> str:
    """What a pretraining depends on besides the run, "random" if there is none; see `settings_digest`."""
    dataset = open_cached(files.of(run)[0])
    cfg = config.pretrain_config(run, "x", run.images or len(dataset), "x")
    return RANDOM if cfg is None else digest(recipe, counted_values(PRETRAIN, cfg), dataset.fingerprint)


class ResultStore:
    """The records of results.jsonl in a folder. A last line that was cut short is dropped.

    Args:
        folder: Where the file is, or will be.

    Raises:
        ConfigError: Another line is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / "results.jsonl"
        self.records: list[Record] = []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                if number == len(lines):
                    break
                record = None
            if not isinstance(record, dict):
                raise ConfigError(f"line {number} of {self.path} is damaged; mend it, or delete it to repeat that run")
            self.records.append(record)

    def add(self, record: Record) -> None:
        """Write a record, through to the disk."""
        self.records.append(record)
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in self.records))

    def done(self) -> dict[tuple[RunSpec, str], Record]:
        """The records by run and settings digest."""
        return {(run_of(record), record["settings"]): record for record in self.records}


def run_of(record: Record) -> RunSpec:
    """The run whose result a record is; a field that is younger than the record has its default."""
    known = (field for field in fields(RunSpec) if field.name in record or field.default is MISSING)
    return RunSpec(**{field.name: record[field.name] for field in known})
