"""Pretrain a vision transformer on images alone, with IDMM.

python train_idmm.py --config rn_configs/pets.yaml
python train_idmm.py --config rn_configs/own.yaml --data my_images --out runs/mine          # a folder of images
python train_idmm.py --config rn_configs/flowers.yaml --training.epochs=100 --logging.run_dir=runs/short
torchrun --nproc-per-node 2 train_idmm.py --config rn_configs/pets.yaml      # on two GPUs, or two parts of a CPU

--data, --out and --init are short for --data.train (a .beton file, or a folder, which is converted once), for
--logging.run_dir and for --model.init (weights to start from).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from types import SimpleNamespace
from typing import Any

from ..cli import help_head, run
from ..config import check_files, finetune, keys, make_config, parse, pretrain
from ..config.load import Values
from .folders import betons_of_folder

SCRIPT = "python train_idmm.py"
FILES = ("backbone.safetensors", "metrics.jsonl", "crops.png", "curves.png")


def train(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Pretrain as the arguments say, and tell what was written."""
    data: list[Any] = []

    def prepare(values: Values, typed: Values) -> Values:
        data.append(values.get("data.train"))
        return betons_of_folder(_check, values, typed)

    cfg = parse(
        pretrain.SCHEMA,
        argv,
        help_head(__doc__, SCRIPT, prog),
        aliases={"data": "data.train", "out": "logging.run_dir", "init": "model.init"},
        others={"idmm-fast finetune": keys(finetune.SCHEMA)},
        prepare=prepare,
    )
    check_files(cfg)

    from ..beton import printable
    from ..evaluate.online import OnlineEvaluation  # torch, which takes seconds, only for what is to be run
    from ..runtime.distributed import is_main_process
    from ..train import pretraining

    folder = pretraining.pretrain(cfg, OnlineEvaluation(cfg))
    if not is_main_process():
        return
    if cfg.training.max_steps:
        print(
            f"{folder}: dry run of at most {cfg.training.max_steps} steps (training.max_steps); no weights were written"
        )
    else:
        print(f"done: {folder} ({', '.join(name for name in FILES if (folder / name).exists())})")
        for line in _next_commands(str(folder), str(data[0]), cfg):
            print(printable(line))


def _check(values: Values) -> None:
    """Refuse values that can't be used, before anything is begun."""
    cfg = make_config(pretrain.SCHEMA, values)
    check_files(cfg)
    pretrain.check(cfg)


def _next_commands(run: str, data: str, cfg: SimpleNamespace) -> list[str]:
    """What goes on from a run, and what judges it, on the same images: `data` as it was typed, a folder or a beton."""
    from ..beton import open_beton

    labels = open_beton(cfg.data.train).label
    if len({*labels[labels >= 0].tolist()}) < 2:  # nothing to fine-tune on, or to judge by
        return [f"next: idmm-fast embed --checkpoint {quote(run)} --images {quote(data)} --out features.npz"]
    given = judged = f"--data {quote(data)}"
    if not Path(data).is_dir():
        test = quote(cfg.data.test or "TEST.beton")
        given, judged = f"{given} --data.test {test}", f"--test {test}"
    return [
        f"next: idmm-fast finetune --config own {given} --init {quote(run)} --out {quote(run + '_finetune')}",
        f"or without training: idmm-fast evaluate --checkpoint {quote(run)} {judged}",
    ]


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(train, prog=prog), argv)
