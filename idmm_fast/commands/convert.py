"""Convert a dataset to .beton files, once, so that training can read it fast; or look at a file that was converted.

python write_datasets.py --ds flowers                    # downloads to data/raw/flowers, writes data/flowers_*.beton
python write_datasets.py --ds folder --root my_images --name mine --test-share 0.2
python write_datasets.py --ds folder --root my_images --labels my_images/labels.csv --name mine
python write_datasets.py --ds sin10k --root imagenet --per-class 10 --seed 0
python write_datasets.py --ds webdataset --shards 'shards/{000..011}.tar' --name mine
python write_datasets.py --ds flowers --split-list flowers90.txt --name flowers90
python write_datasets.py --ds list                       # every dataset, with its size, licence and address
python write_datasets.py --verify data/flowers_train.beton
python write_datasets.py --show data/flowers_train.beton
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import cli, datasets
from ..errors import Stopped
from ..files import replacing

if TYPE_CHECKING:
    from ..beton.write import ConversionResult

# What needs numba or FFCV is imported where it is used, so that --help and a typing error answer at once.

SCRIPT = "python write_datasets.py"
_RANGES = {
    "max_resolution": (8, 65535),
    "quality": (1, 100),
    "workers": (0, 1024),
    "seed": (0, 2**63 - 1),
    "subset": (0, 2**31),
    "per_class": (0, 2**31),
    "total": (0, 2**31),
}
_SPLITS = ("train", "val", "test", "unlabelled")
_ONLY_FOR = {
    "labels": ("folder",),
    "file_column": ("folder",),
    "label_column": ("folder", "hf"),
    "split_column": ("folder",),
    "shards": ("webdataset",),
    "no_labels": ("webdataset",),
}


def parse(argv: Sequence[str], prog: str = SCRIPT) -> argparse.Namespace:
    """The options.

    Args:
        argv: Arguments without the script's name.
        prog: How the command was called.

    Raises:
        SystemExit: An option is wrong, or --help.
    """
    listing = "\n".join(f"  {name:<12} {datasets.describe(name)}" for name in datasets.names())
    parser = cli.command_parser(__doc__, SCRIPT, prog, epilog=f"datasets:\n{listing}")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ds", metavar="NAME", help="which dataset (below), or `list` for a table of them")
    what.add_argument("--verify", type=Path, metavar="FILE", help="check every byte of a beton and count its classes")
    what.add_argument("--show", type=Path, metavar="FILE", help="write an image grid of a beton, FILE.png")
    _add_source_options(parser)
    _add_target_options(parser)
    args = parser.parse_args(argv)
    for name, (low, high) in _RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} {value} is not in {low}..{high}")
    if not 0 <= args.test_share < 1:
        parser.error(f"--test-share {args.test_share:g} is not between 0 and 1")
    if args.name and "/" in args.name and args.ds != "hf":
        parser.error(f"--name {args.name} is the first part of the files' names; their folder is --out")
    for option, of in _ONLY_FOR.items():
        if getattr(args, option) and args.ds not in of:
            parser.error(f"--{option.replace('_', '-')} is for --ds {' and --ds '.join(of)}")
    if args.ds == "folder" and not args.labels and (args.file_column or args.label_column or args.split_column):
        parser.error("--file-column, --label-column and --split-column are columns of the table --labels")
    if args.split_list and (args.subset or args.per_class or args.total or args.test_share):
        parser.error("--split-list names the images; leave out --subset, --per-class, --total and --test-share")
    return args


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    """The options on what is read."""
    group = parser.add_argument_group("what is read")
    group.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of the raw files, as upstream lays them out, or of its archives (default: data/raw/NAME)",
    )
    group.add_argument(
        "--split-list",
        type=Path,
        metavar="FILE",
        help="convert the images that FILE names, with its splits, classes and order of rows: lines "
        "SPLIT<tab>CLASS<tab>FILE, as in results/splits/*.txt. An image that can't be read stops the conversion",
    )
    group.add_argument(
        "--test-share",
        type=float,
        default=0,
        metavar="F",
        help="hold out this share of each class, e.g. 0.2, as the test split of a dataset that has none; chosen by a "
        "hash of the files' names, so that it is the same on every machine",
    )
    group.add_argument("--test-fraction", dest="test_share", type=float, default=0, help=argparse.SUPPRESS)  # in 0.2.0
    group.add_argument(
        "--subset", type=int, default=0, metavar="N", help="at most N images of each split, for a quick look"
    )
    group.add_argument(
        "--per-class", type=int, default=0, metavar="N", help="N training images of each class (sin10k: 10)"
    )
    group.add_argument(
        "--total", type=int, default=0, metavar="N", help="N training images in all (sin10k-total: 10000)"
    )
    group.add_argument("--shards", metavar="PATTERN", help="webdataset: the tar files, e.g. 'dir/{000..011}.tar'")
    group.add_argument("--no-labels", action="store_true", help="webdataset: the shards have no labels")
    group.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="folder: a table of files and labels, perhaps of splits; also a name that tables have in --root or in the "
        "folders of its splits. Its columns are found by their names, or named:",
    )
    group.add_argument("--file-column", metavar="NAME", help="the column of --labels that names the files")
    group.add_argument("--label-column", metavar="NAME", help="the column of labels, in --labels or of hf")
    group.add_argument("--split-column", metavar="NAME", help="the column of --labels that names the splits")
    group.add_argument("--partial", action="store_true", help="take what is there, whatever the official counts")
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the choice of images, and of the order of the rows (default: 0)",
    )


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    """The options on what is written."""
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--out", type=Path, default=Path("data"), metavar="DIR", help="where the betons go (default: data)"
    )
    group.add_argument(
        "--name",
        metavar="NAME",
        help="first part of the files' names (default: the dataset's name); hf: the repository or folder to load",
    )
    group.add_argument(
        "--mode",
        choices=("jpg", "raw", "auto"),
        default="auto",
        help="store JPEGs, or pixels (twice as fast to read, about 10 times as large); "
        "auto takes pixels when they fit an eighth of memory (default)",
    )
    group.add_argument(
        "--max-resolution", type=int, metavar="N", help="shrink images whose longer side exceeds N pixels"
    )
    group.add_argument(
        "--quality", type=int, default=90, metavar="N", help="quality of JPEGs that must be encoded anew (default: 90)"
    )
    group.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: one a core)")
    group.add_argument(
        "--on-error",
        choices=("skip", "fail"),
        default="skip",
        help="what to do with an image that can't be read (default: skip, and list it)",
    )


def list_datasets() -> None:
    """Print the table of datasets."""
    rows = datasets.table()
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def load(args: argparse.Namespace) -> dict[str, datasets.Split]:
    """The splits that the options ask for. Raises DatasetError."""
    listing = datasets.read_split_list(args.split_list) if args.split_list else None
    splits = datasets.load(
        args.ds,
        args.root or datasets.raw_folder(args.ds),
        partial=args.partial or listing is not None,
        whole=listing is not None,
        seed=args.seed,
        test_share=args.test_share,
        subset=args.subset,
        per_class=args.per_class,
        total=args.total,
        shards=args.shards,
        name=args.name,
        no_labels="yes" if args.no_labels else None,
        labels=args.labels,
        file_column=args.file_column,
        label_column=args.label_column,
        split_column=args.split_column,
        unpack_to=str(datasets.raw_folder(args.ds, str(args.out / "raw"))),
    )
    return datasets.choose_listed(splits, listing) if listing else splits


def convert(args: argparse.Namespace, stopped: Callable[[], bool]) -> None:
    """Convert a dataset and say what was written.

    Args:
        args: The options.
        stopped: Asked after each image; when it says so, the conversion ends in KeyboardInterrupt.

    Raises:
        DatasetError, WriteError, Locked, OSError: The message says why and what to do.
        KeyboardInterrupt: It was stopped; of the splits that the exception names the new file is there.
    """
    splits = load(args)
    from ..beton import WriteError, account_lines, printable

    stem = (args.name or args.ds).rstrip("/").rsplit("/", 1)[-1]
    new = {split: args.out / f"{stem}_{split}.beton" for split in splits}
    for split, path in new.items():
        if _has_list(args, split) and (listed := path.with_suffix(".txt")).exists() and not path.exists():
            raise WriteError(
                f"{listed} is of no conversion that is there, and the list of the chosen images would take its place; "
                f"rename or delete it"
            )
    skipped, accounts = 0, {}
    try:
        for split, path in new.items():
            written = _convert_split(args, path, split, splits, stopped)
            accounts[split] = written.account
            skipped += len(written.skipped)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*accounts) from None
    except Exception:
        if accounts:
            whole = " and ".join(str(new[split]) for split in accounts)
            told = f"warning: {whole} is of this conversion: convert again, so that all splits fit together"
            print(printable(told), file=sys.stderr)
        raise
    print("\n".join(account_lines(accounts, {split: content.classes for split, content in splits.items()})))
    if skipped:
        print(f"{skipped} images were skipped; the .json beside each beton lists them.", file=sys.stderr)
    for path in (args.out / f"{stem}_{split}.beton" for split in _SPLITS if split not in splits):
        if path.exists():
            told = f"{path} is of an earlier conversion, and its images may be in {' or '.join(map(str, new.values()))}"
            print(
                printable(f"warning: {told} too: delete it, or convert again with the options that made it"),
                file=sys.stderr,
            )


def _convert_split(
    args: argparse.Namespace, path: Path, split: str, splits: dict[str, datasets.Split], stopped: Callable[[], bool]
) -> "ConversionResult":
    """Convert one of the splits, see `convert`."""
    from ..beton import open_beton, printable, write_beton

    content = splits[split]
    written = write_beton(
        path,
        content,
        dataset=args.ds,
        name=split,
        mode=args.mode,
        max_resolution=args.max_resolution,
        quality=args.quality,
        workers=args.workers,
        seed=None if args.split_list else args.seed,  # a list has the order of the rows
        on_error="fail" if args.split_list else args.on_error,  # and a skipped image would move those after it
        should_stop=stopped,
        splits={name: len(each) for name, each in splits.items()},
    )
    chosen = path.with_suffix(".txt")
    if _has_list(args, split):
        names = "".join(f"{content.name(i)}\n" for i in range(len(content)))
        with replacing(chosen) as draft:
            draft.write_text(names, encoding="utf-8", errors="surrogateescape")
        print(printable(f"{chosen}: the {len(content)} images that were chosen"))
    elif chosen.exists() and not args.split_list:
        print(printable(f"warning: {chosen} was there before: it does not list {path.name}"), file=sys.stderr)
    kind = f"{len(content.classes)} classes, {written.mode}, {path.stat().st_size / 1e6:.1f} MB"
    print(printable(f"{path}: {written.count} images, {kind}"))
    if args.split_list:
        print(f"  fingerprint {open_beton(path).fingerprint}")
    for skip in written.skipped:
        print(f"  skipped {skip['file']}: {skip['reason']}", file=sys.stderr)
    return written


def _has_list(args: argparse.Namespace, split: str) -> bool:
    """Whether the images of a split are chosen at random, and so listed in NAME_SPLIT.txt."""
    is_sample = args.per_class or args.total or (args.ds.startswith("sin10k") and not args.split_list)
    return bool(args.subset or (split == "train" and is_sample))


def run(args: argparse.Namespace, stopped: Callable[[], bool]) -> None:
    """Do what the options ask for."""
    if args.ds:
        convert(args, stopped)
    elif args.verify:
        from ..beton.verify import verify

        print(verify(args.verify))
    else:
        from ..beton import printable
        from ..plots.image_grid import plot_image_grid

        print(printable(plot_image_grid(args.show)))


def write_datasets(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Do what the arguments ask for; a signal ends it, with nothing left under the final name."""
    args = parse(argv, prog)
    if args.ds == "list":
        list_datasets()
        return
    if args.ds and args.ds not in datasets.names():
        sys.exit(f"error: {datasets.unknown(args.ds)}")
    numbers: list[int] = []

    def stop(number: int, _: object) -> None:
        numbers.append(number)  # the exception may be lost, if it comes while Python tidies up; this is not
        raise KeyboardInterrupt

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        run(args, lambda: bool(numbers))
    except KeyboardInterrupt as stopped:
        if stopped.args:
            told = f"stopped after {' and '.join(stopped.args)}: convert again, so that all splits fit together"
        else:
            told = "stopped" + "; nothing was left under the final name" * bool(args.ds)
        print(told, file=sys.stderr)
        sys.exit(Stopped.exit_code)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    cli.run(partial(write_datasets, prog=prog), argv)
