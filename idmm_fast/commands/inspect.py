"""Look at images before anything is trained on them: sizes, damage, exact duplicates, leakage, balance of the classes.

python inspect_data.py my_images                                        # and a contact sheet of each class
python inspect_data.py data/mine_train.beton data/mine_test.beton
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import run


def inspect_data(argv: Sequence[str]) -> None:
    """Look at what the arguments name, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="+", type=Path, metavar="FOLDER|BETON", help="one folder, or a beton of each split"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the contact sheets go (default: runs/NAME_inspected)"
    )
    args = parser.parse_args(argv)

    from .. import inspect  # numba, which takes seconds, only for what is to be looked at

    found = inspect.inspect(args.data)
    name = args.data[0].resolve().name.removesuffix(".beton").removesuffix("_train")
    print("\n".join([*inspect.report_lines(found), *inspect.suggestion(found, args.data[0], name)]))
    sheets = inspect.write_sheets(found, args.out or Path("runs") / f"{name}_inspected")
    if sheets:
        print(f"{len(sheets)} contact sheets: {sheets[0].parent}")


def main(argv: Sequence[str] | None = None) -> None:
    """The script."""
    run(inspect_data, argv)
