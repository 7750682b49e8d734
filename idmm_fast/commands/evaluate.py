"""Evaluate frozen features: weighted kNN (k 10 and 20), a linear probe, and a picture of nearest neighbours.

    python evaluate.py --checkpoint runs/pets_deit_tiny
    python evaluate.py --checkpoint runs/pets_deit_tiny --data data/dtd_train.beton --test data/dtd_test.beton
    python evaluate.py --config rn_configs/pets.yaml                     # random weights, to compare with; no picture

--checkpoint NAME (a run folder or a checkpoint in it) is short for --model.init=NAME; model and data are those of the
run's config.yaml unless given. --data and --test are short for --data.train and --data.test. Where --data is a folder
of images, its own test split is evaluated, or a fifth of each class, which is held out. Picture and report go to the
folder --out (short for --logging.run_dir), by default the run's.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import help_head, run
from ..config import check_files, finetune, keys, make_config, parse, pretrain
from ..config.evaluate import SCHEMA, run_config
from ..config.load import Values
from ..convert import TEST_SHARE
from .folders import betons_of_folder

SCRIPT = "python evaluate.py"


def evaluate(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Evaluate as the arguments say, and print the accuracies."""
    cfg = parse(
        SCHEMA,
        [*run_config(argv), *argv],
        help_head(__doc__, SCRIPT, prog),
        aliases={"checkpoint": "model.init", "data": "data.train", "test": "data.test", "out": "logging.run_dir"},
        ignored=[*keys(pretrain.SCHEMA), *keys(finetune.SCHEMA)],
        prepare=lambda values, typed: betons_of_folder(_check, values, typed, TEST_SHARE),
    )
    check_files(cfg)

    from ..beton import open_beton, printable
    from ..evaluate.frozen import evaluate_frozen  # torch, which takes seconds, only for what is to be run
    from ..evaluate.tuned import evaluate_classifier

    result = evaluate_frozen(cfg)
    skipped = result.pop("images_skipped", 0)
    print(
        "  ".join(f"{name} {value:.2f} %" for name, value in result.items())
        + (f"  ({skipped} images skipped)" if skipped else "")
    )
    labels = open_beton(cfg.data.test).label
    most = max(Counter(labels.tolist()).values())
    images = "1 test image" if len(labels) == 1 else f"{len(labels):,} test images"
    print(f"{images}, of which the most frequent class has {most:,} ({100 * most / len(labels):.2f} %)")
    classifier = evaluate_classifier(cfg)
    if classifier:
        keys_shown = [key for key in ("top1", "top5", "balanced_accuracy", "ece") if key in classifier]
        print("classifier: " + "  ".join(f"{key} {classifier[key]:.2f} %" for key in keys_shown))
        if classifier["trained_on"]:
            seen = f"{classifier['trained_on']} of {classifier['images']} test images are in data.train of"
            print(f"warning: {seen} {cfg.model.init}: this is no accuracy on new images", file=sys.stderr)
        if classifier["folder"]:
            print(printable(f"report: {classifier['folder']}/report.md"))
    if cfg.logging.run_dir:
        print(printable(f"picture: {Path(cfg.logging.run_dir) / 'neighbours.png'}"))


def _check(values: Values) -> None:
    """Refuse values that can't be used, before anything is begun."""
    check_files(make_config(SCHEMA, values))


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(evaluate, prog=prog), argv)
