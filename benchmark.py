#!/usr/bin/env python
"""Measure throughput.

python benchmark.py loader --beton data/flowers_train.beton           # ours, decode alone, the recipe in PIL/torchvision
python benchmark.py loader --images my_photos --workers 1 --peers official,ffcv,albumentations,dali --repeats 5 --json bench.json
"""

import argparse
import sys
from pathlib import Path


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loader = commands.add_parser(
        "loader", help="images/s of the six-view pipeline, against peers, in one run, alternating"
    )
    source = loader.add_mutually_exclusive_group()
    source.add_argument("--beton", type=Path, metavar="FILE", help="a beton of JPEGs")
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="a tree of JPEGs (default: photographs made from scikit-learn's two)"
    )
    loader.add_argument("--workers", type=int, default=1, metavar="N", help="threads of each system (default: 1)")
    loader.add_argument("--peers", default="official", metavar="LIST",
                        help="comma-separated: official (default), ffcv, albumentations, dali; `make bench` installs and runs all")  # fmt: skip
    loader.add_argument("--repeats", type=int, default=5, metavar="N", help="times each system runs (default: 5)")
    loader.add_argument("--limit", type=int, default=256, metavar="N", help="images a run (default: 256)")
    loader.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    loader.add_argument("--plot", type=Path, metavar="PNG", help="write a picture of them here")
    args = parser.parse_args(argv)

    from idmm_fast.beton import BetonError
    from idmm_fast.datasets import DatasetError
    from idmm_fast.report.benchmark_loader import run

    try:
        run(args)
    except (BetonError, DatasetError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
