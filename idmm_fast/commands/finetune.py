"""Fine-tune a vision transformer with labels, from a pretraining or from random weights.

    python finetune.py --config rn_configs/finetune/pets.yaml --init runs/pets_deit_tiny
    python finetune.py --config rn_configs/finetune/pets.yaml --logging.run_dir=runs/pets_scratch
    python finetune.py --config rn_configs/finetune/pets.yaml --init runs/pets_deit_tiny --stages

--init NAME is short for --model.init=NAME: the run folder of a pretraining, a checkpoint, a .safetensors file, or
timm:NAME. --data and --out are short for --data.train and --logging.run_dir. Where --data is a folder of images, it is
converted once; where that has no test images, a fifth of each class is held out, which is said.
--stages: progressive resizing. The stages of progressive.stages run one after another, each from the end of the one
before it: 800 epochs at 224 pixels, then 100 at 448. Called again, it resumes where it was stopped.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from ..api import TEST_SHARE
from ..cli import run
from ..config import check_files, find_run_config, keys, parse, pretrain
from ..config import finetune as schema
from .folders import betons_of_folder


def tune(argv: Sequence[str]) -> None:
    """Fine-tune as the arguments say, and tell the accuracy."""
    cfg = parse(
        schema.SCHEMA,
        [arg for arg in argv if arg != "--stages"],
        __doc__,
        aliases={"data": "data.train", "out": "logging.run_dir", "init": "model.init"},
        others={"train_idmm.py": keys(pretrain.SCHEMA)},
        configs="finetune",
        prepare=lambda values: betons_of_folder(_with_model_of_init(values), TEST_SHARE),
    )
    check_files(cfg)

    from ..runtime.distributed import is_main_process  # torch, which takes seconds, only for what is to be run
    from ..train.finetuning import finetune
    from ..train.stages import run_stages

    in_stages = "--stages" in argv
    results = run_stages(cfg) if in_stages else [finetune(cfg)]
    if not is_main_process():
        return
    for k, result in enumerate(results, 1):
        folder = f"{cfg.logging.run_dir}/stage_{k}" if in_stages else cfg.logging.run_dir
        if result:
            accuracy = f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %"
            print(f"{folder}: {accuracy} on {result['test_images']} test images")
        else:
            steps = cfg.training.max_steps
            print(f"{folder}: dry run of at most {steps} steps (training.max_steps); no weights were written")


def _with_model_of_init(values: dict[str, Any]) -> dict[str, Any]:
    """Where no model is named, that of the run model.init."""
    init = values.get("model.init")
    run = find_run_config(init) if isinstance(init, str) and "model.name" not in values else None
    if run is None:
        return values
    model = yaml.safe_load(run.read_text(encoding="utf-8"))["model"]
    return {"model.name": model["name"], "model.options": model["options"]} | values


def main(argv: Sequence[str] | None = None) -> None:
    """The script."""
    run(tune, argv)
