#!/usr/bin/env python
"""Convert a dataset to .beton files, once, so that training can read it fast.

python write_datasets.py --ds flowers                    # downloads to data/raw/flowers, writes data/flowers_train.beton, ...
python write_datasets.py --ds folder --root my_images --name mine
"""

import argparse
import signal
import sys
from pathlib import Path

from idmm_fast import datasets
from idmm_fast.beton import WriteError, write_beton


def parse(argv):
    listing = "\n".join(f"  {name:<10} {datasets.describe(name)}" for name in datasets.names())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"datasets:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ds", required=True, metavar="NAME", help="which dataset (below)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the raw files (default: data/raw/NAME)")
    parser.add_argument(
        "--out", type=Path, default=Path("data"), metavar="DIR", help="where the betons go (default: data)"
    )
    parser.add_argument("--name", metavar="NAME", help="first part of the files' names (default: the dataset's name)")
    parser.add_argument("--mode", choices=("jpg", "raw", "auto"), default="auto",
                        help="store JPEGs, or pixels (3 to 8 times as fast to read, about 10 times as large); "
                             "auto takes pixels when they fit an eighth of memory (default)")  # fmt: skip
    parser.add_argument(
        "--max-resolution", type=int, metavar="N", help="shrink images whose longer side exceeds N pixels"
    )
    parser.add_argument(
        "--quality", type=int, default=90, metavar="N", help="quality of JPEGs that must be encoded anew (default: 90)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: one a core)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order of the rows (default: 0)")
    parser.add_argument(
        "--on-error",
        choices=("skip", "fail"),
        default="skip",
        help="what to do with an image that can't be read (default: skip)",
    )
    args = parser.parse_args(argv)
    for name, low, high in (
        ("max_resolution", 8, 65535),
        ("quality", 1, 100),
        ("workers", 0, 1024),
        ("seed", 0, 2**63 - 1),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} {value} is not in {low}..{high}")
    return args


def main(argv=None):
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; nothing was left under the final name"))
    root = args.root or Path("data/raw") / args.ds
    skipped = 0
    try:
        for split, content in datasets.load(args.ds, root).items():
            written = write_beton(
                args.out / f"{args.name or args.ds}_{split}.beton", content, dataset=args.ds, name=split, mode=args.mode,
                max_resolution=args.max_resolution, quality=args.quality, workers=args.workers, seed=args.seed, on_error=args.on_error,
            )  # fmt: skip
            size = written.path.stat().st_size / 1e6
            print(
                f"{written.path}: {written.count} images, {len(content.classes)} classes, {written.mode}, {size:.1f} MB"
            )
            for skip in written.skipped:
                print(f"  skipped {skip['file']}: {skip['reason']}", file=sys.stderr)
            skipped += len(written.skipped)
    except (datasets.DatasetError, WriteError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; nothing was left under the final name")
    if skipped:
        print(f"{skipped} images were skipped; the .json beside each beton lists them.", file=sys.stderr)


if __name__ == "__main__":
    main()
