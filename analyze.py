#!/usr/bin/env python
"""Look at why the method works.

python analyze.py updates --config rn_configs/demo.yaml     # how often and how far class weights move between visits
python analyze.py updates --config rn_configs/demo.yaml --out runs/updates --images 128 --epochs 250 --batch 16
"""

import argparse
from collections.abc import Sequence

from idmm_fast.cli import run
from idmm_fast.config import check_files, parse, pretrain


def analyze(argv: Sequence[str]) -> None:
    """Run what the arguments ask for, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    updates = commands.add_parser(
        "updates",
        help="the infrequent updating problem: the same epochs trained plain, with label smoothing, CutMix, both",
    )
    for name, default, kind, text in (
        ("out", "runs/updates", str, "folder for updates.png and updates.json"),
        ("images", 128, int, "images, each its own class"),
        ("epochs", 250, int, "epochs of each way"),
        ("batch", 16, int, "images a step"),
    ):
        metavar = "N" if kind is int else "DIR"
        updates.add_argument(
            f"--{name}", default=default, type=kind, metavar=metavar, help=f"{text} (default: {default})"
        )
    args, rest = parser.parse_known_args(argv)
    cfg = parse(pretrain.SCHEMA, rest, __doc__)
    check_files(cfg)

    from idmm_fast.studies import class_updates  # torch, which takes seconds, only for what is to be run

    result = class_updates.updates(cfg, args.out, args.images, args.epochs, args.batch)
    print(class_updates.summary(result))
    print(f"picture: {args.out}/updates.png")


def main(argv: Sequence[str] | None = None) -> None:
    """The script."""
    run(analyze, argv)


if __name__ == "__main__":
    main()
