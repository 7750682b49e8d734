#!/usr/bin/env python
"""Look at why the method works.

python analyze.py updates --config rn_configs/demo.yaml              # how often and how far class weights move between their own visits
python analyze.py updates --config rn_configs/demo.yaml --out runs/updates --images 128 --epochs 250 --batch 16
"""

import argparse
import sys


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    updates = commands.add_parser(
        "updates",
        help="the infrequent updating problem: the same epochs trained plain, with label smoothing, CutMix, both",
    )
    updates.add_argument(
        "--out",
        default="runs/updates",
        metavar="DIR",
        help="folder for updates.png and updates.json (default: runs/updates)",
    )
    updates.add_argument(
        "--images", type=int, default=128, metavar="N", help="images, each its own class (default: 128)"
    )
    updates.add_argument("--epochs", type=int, default=250, metavar="N", help="epochs of each way (default: 250)")
    updates.add_argument("--batch", type=int, default=16, metavar="N", help="images a step (default: 16)")
    args, rest = parser.parse_known_args(argv)

    from idmm_fast.beton import BetonError
    from idmm_fast.config import ConfigError, parse
    from idmm_fast.loader import LoaderError
    from idmm_fast.studies.class_updates import summary, updates
    from idmm_fast.train.pretraining import SCHEMA

    try:
        cfg = parse(SCHEMA, rest, __doc__)
        result = updates(cfg, args.out, args.images, args.epochs, args.batch)
    except (BetonError, ConfigError, LoaderError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(summary(result))
    print(f"picture: {args.out}/updates.png")


if __name__ == "__main__":
    main()
