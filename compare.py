#!/usr/bin/env python
"""Methods against each other: pretrain, then nearest neighbours, a linear probe and fine-tuning, over datasets and seeds.

python compare.py --datasets flowers pets --methods random idmm simclr --seeds 0 1 2 --budget 400000
python compare.py --datasets flowers --methods random idmm --images 250 500 1000 --budget 400000        # fewer images, for both trainings
python compare.py --datasets flowers pets --targets flowers pets --methods idmm simclr                   # pretrained on one, fine-tuned on another
python compare.py report --out runs/compare --page mine.md                                               # tables and plots in one page

All methods see the same number of crops (--budget), and all fine-tunings too (--finetune-budget). NAME of a dataset is data/NAME_train.beton and
data/NAME_test.beton. A cell that is done is not done again: call it again after a stop, or with more methods, datasets or seeds.
Methods are the files in rn_configs/methods/, what is under `methods` in the configuration, and `random`, no pretraining.
"""

import argparse
import sys


def parse(argv):
    """The arguments, of a comparison or of its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--out",
        default="runs/compare",
        metavar="DIR",
        help="folder of results.jsonl, the runs and the report (default: runs/compare)",
    )
    if argv[:1] == ["report"]:
        parser.add_argument("report")
        add("--page", metavar="FILE", help="the Markdown page; pictures go beside it (default: DIR/report.md)")
        return parser.parse_args(argv)
    add(
        "--config",
        default="rn_configs/compare/small.yaml",
        metavar="FILE",
        help="model, sizes, what all trainings share (default: rn_configs/compare/small.yaml)",
    )
    add("--datasets", nargs="+", required=True, metavar="NAME", help="what is pretrained on")
    add(
        "--methods",
        nargs="+",
        required=True,
        metavar="NAME",
        help="random, idmm, instance, simclr, supcon, moco_v2, moco_v3, dino, or a variant",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="each a pretraining and a fine-tuning (default: 0)",
    )
    add(
        "--budget",
        default="400000",
        metavar="CROPS",
        help="crops seen in each pretraining; 4800x: so many of each image (default: 400000)",
    )
    add(
        "--finetune-budget",
        nargs="+",
        default=["100000"],
        metavar="CROPS",
        help="crops seen in each fine-tuning (default: 100000)",
    )
    add(
        "--images",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="so many images of a dataset, drawn by the seed; 0: all (default)",
    )
    add(
        "--sampling",
        nargs="+",
        choices=("balanced", "random"),
        default=["balanced"],
        help="how these are drawn (default: balanced)",
    )
    add(
        "--targets",
        nargs="+",
        default=["same"],
        metavar="NAME",
        help="what is fine-tuned on and judged; same: the images of the pretraining (default)",
    )
    add("--data", default="data", metavar="DIR", help="folder of the betons (default: data)")
    add("--jobs", type=int, default=1, metavar="N", help="pretrainings at a time, which share the cores (default: 1)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(sys.argv[1:] if argv is None else argv)

    from idmm_fast.beton import BetonError
    from idmm_fast.compare.page import write_page
    from idmm_fast.compare.runner import Setup, Stopped, compare, make_cells
    from idmm_fast.config import ConfigError

    if hasattr(args, "report"):
        try:
            print(f"report: {write_page(args.out, args.page)}")
        except (ConfigError, OSError) as error:
            sys.exit(f"error: {error}")
        return
    try:
        cells = make_cells(
            args.datasets,
            args.images,
            args.sampling,
            args.methods,
            args.seeds,
            args.targets,
            args.budget,
            args.finetune_budget,
            args.data,
        )
        lines, failed = compare(cells, Setup(args.config), args.data, args.out, args.jobs)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except (ConfigError, BetonError, FileNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr)
    print(f"done: {len(lines)} cells in {args.out}/results.jsonl; python compare.py report --out {args.out}")
    sys.exit(1 if failed else None)


if __name__ == "__main__":
    main()
