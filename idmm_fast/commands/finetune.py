"""Fine-tune a vision transformer with labels, from a pretraining or from random weights.

    python finetune.py --config rn_configs/finetune/pets.yaml --init runs/pets_deit_tiny
    python finetune.py --config rn_configs/finetune/pets.yaml --logging.run_dir=runs/pets_scratch
    python finetune.py --config rn_configs/finetune/pets.yaml --init runs/pets_deit_tiny --stages

--init NAME is short for --model.init=NAME: the run folder of a pretraining, a checkpoint, a .safetensors file, or
timm:NAME. --data and --out are short for --data.train and --logging.run_dir. Where --data is a folder of images, it is
converted once; where that has no test images, a fifth of each class is held out, which is said.
--folds N: cross-validation, for small sets. data.train is divided into N parts, each class alike; each part is tested
by a network that was trained on the others. The mean and its spread are told.

--stages: progressive resizing. The stages of progressive.stages run one after another, each from the end of the one
before it: 800 epochs at 224 pixels, then 100 at 448. Called again, it resumes where it was stopped.
"""

from collections.abc import Sequence
from functools import partial
from shlex import quote
from typing import Any

from ..cli import help_head, run
from ..config import ConfigError, check_files, keys, laid_over, make_config, model_of, parse, pretrain
from ..config import finetune as schema
from ..config.load import Values
from ..convert import TEST_SHARE
from .folders import betons_of_folder

SCRIPT = "python finetune.py"


def tune(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Fine-tune as the arguments say, and tell the accuracy."""
    folds, rest = _folds(argv)
    cfg = parse(
        schema.SCHEMA,
        [arg for arg in rest if arg != "--stages"],
        help_head(__doc__, SCRIPT, prog),
        aliases={"data": "data.train", "out": "logging.run_dir", "init": "model.init"},
        others={"idmm-fast pretrain": keys(pretrain.SCHEMA)},
        configs="finetune",
        prepare=lambda values, typed: _prepared(values, typed, folds),
    )
    check_files(cfg)

    from ..beton import printable
    from ..runtime.distributed import is_main_process  # torch, which takes seconds, only for what is to be run
    from ..train.finetuning import finetune
    from ..train.folds import run_folds
    from ..train.stages import run_stages

    if folds:
        result = run_folds(cfg, folds)
        if is_main_process():
            accuracy = f"top-1 {result['top1']:.2f} ± {result['top1_std']:.2f} %"
            print(f"{cfg.logging.run_dir}: {accuracy} (mean and standard deviation of {folds} folds)")
        return
    in_stages = "--stages" in argv
    results = run_stages(cfg) if in_stages else [finetune(cfg)]
    if not is_main_process():
        return
    for k, result in enumerate(results, 1):
        folder = f"{cfg.logging.run_dir}/stage_{k}" if in_stages else cfg.logging.run_dir
        if result:
            accuracy = f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %"
            print(f"{folder}: {accuracy} on {result['test_images']} test images")
            if k == len(results):
                run = printable(quote(str(folder)))
                print(f"next: idmm-fast predict --checkpoint {run} --images FOLDER --out predictions.csv")
        else:
            steps = cfg.training.max_steps
            print(f"{folder}: dry run of at most {steps} steps (training.max_steps); no weights were written")


def _folds(argv: Sequence[str]) -> tuple[int, list[str]]:
    """(the number that --folds gives, or 0; the other arguments)."""
    for k, arg in enumerate(argv):
        name, eq, value = arg.partition("=")
        if name == "--folds":
            used = 1 if eq else 2
            text = value if eq else "".join(argv[k + 1 : k + 2])
            if not text.isdecimal() or "--stages" in argv:
                raise ConfigError("--folds is a number of folds, e.g. --folds 5, and does not go with --stages")
            if int(text) < 2:
                raise ConfigError(f"--folds {text}: it is at least 2")
            return int(text), [*argv[:k], *argv[k + used :]]
    return 0, list(argv)


def _check(values: Values) -> None:
    """Refuse values that can't be used, before anything is begun."""
    cfg = make_config(schema.SCHEMA, values)
    check_files(cfg)
    schema.check(cfg)


def _prepared(values: dict[str, Any], typed: dict[str, Any], folds: int) -> dict[str, Any]:
    """Values with betons in place of a folder, and, where no model is typed, that of model.init."""
    if "model.name" not in typed:
        values = laid_over(values | model_of(values.get("model.init")), typed)
    share = 0.0 if folds else TEST_SHARE
    values = betons_of_folder(_check, values, typed, share, ("train", "test", "val"))
    if folds and values.get("data.test") is None and "data.train" in values:
        values = values | {"data.test": values["data.train"]}  # each fold has its own
    return values


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(tune, prog=prog), argv)
