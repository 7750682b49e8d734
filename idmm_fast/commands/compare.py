"""Compare methods: pretrain, then kNN, a linear probe and fine-tuning, over datasets and seeds.

python compare.py --datasets flowers pets --methods random idmm simclr --seeds 0 1 2 --budget 400000
python compare.py --datasets flowers --methods random idmm --images 250 500 1000        # fewer images
python compare.py --datasets flowers pets --targets flowers pets --methods idmm simclr  # transfer
python compare.py report --out runs/compare --page mine.md                              # tables and plots in one page

All methods see the same number of crops (--budget), or each those that it makes in the same time (--minutes), and all
fine-tunings see the same number of crops (--finetune-budget). NAME of a dataset stands for data/NAME_train.beton and
data/NAME_test.beton. A run that is done is not done again: call it again after a stop, or with more methods, datasets
or seeds. Methods are the files in rn_configs/methods/, what is under `methods` in the configuration, and `random`: no
pretraining.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import command_parser, run
from ..config import ConfigError
from ..config.load import packaged_config

SCRIPT = "python compare.py"
CONFIG = "rn_configs/compare/small.yaml"


def parse(argv: Sequence[str], prog: str = SCRIPT) -> argparse.Namespace:
    """The arguments, of a sweep or of its report."""
    parser = command_parser(__doc__, SCRIPT, prog)
    parser.add_argument(
        "--out",
        default="runs/compare",
        metavar="DIR",
        help="folder of results.jsonl, the runs and the report (default: runs/compare)",
    )
    if argv[:1] == ["report"]:
        parser.add_argument("report")
        parser.add_argument(
            "--page",
            metavar="FILE",
            help="the Markdown page; pictures go to assets/ beside it (default: DIR/report.md)",
        )
        return parser.parse_args(argv)
    _add_trainings(parser)
    _add_images(parser)
    args = parser.parse_args(argv)
    args.config = packaged_config(args.config, "compare")
    return args


def _add_trainings(parser: argparse.ArgumentParser) -> None:
    """What is trained, how long, and how many at a time."""
    add = parser.add_argument
    add(
        "--config",
        default=CONFIG,
        metavar="FILE",
        help=f"model, sizes, what all trainings share; a file, or the name of one in rn_configs/compare/ "
        f"(default: {CONFIG})",
    )
    add(
        "--methods",
        nargs="+",
        required=True,
        metavar="NAME",
        help="random, instance_muon (the recommended recipe), idmm, instance, simclr, supcon, moco_v2, moco_v3, dino, "
        "or a variant",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="each a pretraining and a fine-tuning (default: 0)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        default="400000",
        metavar="CROPS",
        help="crops seen in each pretraining; 4800x: so many of each image (default: 400000)",
    )
    length.add_argument(
        "--minutes",
        type=_minutes,
        default=0.0,
        metavar="M",
        help="each pretraining sees the crops that its method makes in so long, instead of --budget; first all methods "
        "are timed in turns, for some seconds each: leave the machine alone until then",
    )
    add(
        "--finetune-budget",
        nargs="+",
        default=["100000"],
        metavar="CROPS",
        help="crops seen in each fine-tuning (default: 100000)",
    )
    add(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="pretrainings at a time, each with its part of the cores (default: 1)",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    """What it is trained and tested on."""
    add = parser.add_argument
    add("--datasets", nargs="+", required=True, metavar="NAME", help="what is pretrained on")
    add(
        "--images",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="so many images of a dataset, sampled by the seed; 0: all (default)",
    )
    add(
        "--sampling",
        nargs="+",
        choices=("balanced", "random"),
        default=["balanced"],
        help="how these are sampled (default: balanced)",
    )
    add(
        "--targets",
        nargs="+",
        default=["same"],
        metavar="NAME",
        help="what is fine-tuned and evaluated on; same: the images of the pretraining (default)",
    )
    add("--data", default="data", metavar="DIR", help="folder of the .beton files (default: data)")


def _minutes(text: str) -> float:
    """A length of time, above 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"a pretraining takes a number of minutes above 0, not {text}")
    return minutes


def _jobs(text: str) -> int:
    """A number of processes, at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"at least 1 pretraining at a time, not {text}")
    return int(text)


def check_files(args: argparse.Namespace) -> None:
    """Raise an error for a file that is missing, before anything slow is imported."""
    from ..compare.spec import beton_path

    if not Path(args.config).exists():
        raise ConfigError(f"{args.config} does not exist; small and paper come along, {CONFIG} is one to begin from")
    wanted = [(name, "train") for name in args.datasets]
    for target in args.targets:
        names = args.datasets if target == "same" else [target]
        wanted += [(name, split) for name in names for split in ("train", "test")]
    for path in (beton_path(args.data, name, split) for name, split in wanted):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; make it with: idmm-fast convert (see --help)")


def compare(argv: Sequence[str], prog: str = SCRIPT) -> int | None:
    """Run what is not done of the sweep that the arguments describe, or write the report."""
    args = parse(argv, prog)
    if hasattr(args, "report"):
        if not Path(args.out).is_dir():
            raise ConfigError(f"--out {args.out} does not exist; it is the folder of a sweep")

        from ..compare.page import write_page

        print(f"report: {write_page(args.out, args.page)}")
        return 0
    check_files(args)

    from ..compare.pool import run_sweep  # torch, which takes seconds, only for what is to be run
    from ..compare.runs import SweepAxes, make_runs
    from ..compare.spec import SweepConfig

    axes = SweepAxes(
        datasets=args.datasets,
        methods=args.methods,
        images=args.images,
        sampling=args.sampling,
        seeds=args.seeds,
        targets=args.targets,
        budget=args.budget,
        finetune_budget=args.finetune_budget,
        minutes=args.minutes,
    )
    config = SweepConfig(args.config)
    records, failed = run_sweep(make_runs(axes, config, args.data), config, args.data, args.out, args.jobs)
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr)
    if records:
        print(f"done: {len(records)} runs in {args.out}/results.jsonl; {prog} report --out {args.out}")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(compare, prog=prog), argv)
