"""Look at images before anything is trained on them: sizes, damage, exact duplicates, leakage, balance of the classes.

python inspect_data.py my_images
python inspect_data.py my_images --labels my_images/labels.csv           # classes from a table, not from folders
python inspect_data.py data/mine_train.beton data/mine_test.beton

It ends with the commands that fit so many images of such a size, and with the time that they take on this machine: an
estimate from a few steps of each, which takes seconds (--no-measure leaves it out). Contact sheets, the first images of
each class, go to runs/NAME_inspected.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import command_parser, run
from ..errors import IdmmError

if TYPE_CHECKING:
    from ..bench.minutes import Pace
    from ..inspect import Command, Inspection, Suggestion

SCRIPT = "python inspect_data.py"
LONG = 8 * 60  # minutes: longer trainings get advice
FEW, SOME = 100, 200  # epochs of a pretraining: of fewer than FEW, the minutes of SOME are told
OPTIONS = {
    "labels": ("FILE.csv", "of a folder: a table of files and labels, as for idmm-fast convert"),
    "file_column": ("NAME", "the column of --labels that names the files"),
    "label_column": ("NAME", "the column of --labels that holds the labels"),
    "split_column": ("NAME", "the column of --labels that names the splits"),
}


def inspect_data(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Look at what the arguments name, and print what was found."""
    parser = command_parser(__doc__, SCRIPT, prog)
    parser.add_argument(
        "data", nargs="+", type=Path, metavar="FOLDER|BETON", help="one folder, or a beton of each split"
    )
    for option, (metavar, text) in OPTIONS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", metavar=metavar, help=text)
    parser.add_argument("--no-measure", action="store_true", help="do not measure how long a training takes")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the contact sheets go (default: runs/NAME_inspected)"
    )
    args = parser.parse_args(argv)
    labels = {option: getattr(args, option) for option in OPTIONS if getattr(args, option)}
    if labels and not args.labels:
        parser.error("--file-column, --label-column and --split-column are columns of the table --labels")

    from .. import inspect  # numba, which takes seconds, only for what is to be looked at
    from ..beton import printable

    found = inspect.inspect(args.data, labels)
    name = inspect.run_name(args.data[0])
    print("\n".join(inspect.report_lines(found)), flush=True)
    sheets = inspect.write_sheets(found, args.out or Path("runs") / f"{name}_inspected")
    if sheets:
        pictures = f"{len(sheets)} picture" + "s" * (len(sheets) != 1)
        print(f"contact sheets\n  {printable(f'{sheets[0].parent}: {pictures}')}")
    print_suggestion(found, inspect.suggest(found, args.data, name, labels), not args.no_measure)


def print_suggestion(found: "Inspection", suggestion: "Suggestion", measured: bool) -> None:
    """Print commands, and below each the time that it takes, if that is to be measured."""
    from ..beton import printable

    print(printable(suggestion.head))
    paces: dict[str, Pace | str] = {}
    for command in suggestion.commands:
        print(f"  {printable(command.text)}", flush=True)
        if command.why:
            print(f"    {command.why}")
        if measured and command.images:
            if command.verb not in paces:
                paces[command.verb] = pace_of(found, suggestion, command)
            print("\n".join(f"    {line}" for line in time_lines(command, paces[command.verb])), flush=True)
    if suggestion.missing:
        print(f"  {suggestion.missing}")


def pace_of(found: "Inspection", suggestion: "Suggestion", command: "Command") -> "Pace | str":
    """How fast a training is here, or why that can't be measured."""
    from ..bench.minutes import measure_pace

    source = found.sources[found.training]
    try:
        return measure_pace(command.verb, command.keys, source, suggestion.rows, found.stored or "raw")
    except (IdmmError, OSError, ValueError, RuntimeError, MemoryError) as error:
        return str(error)


def time_lines(command: "Command", pace: "Pace | str") -> list[str]:
    """The time that a training takes, in words, and what makes it shorter."""
    if isinstance(pace, str):
        return [f"how long it takes could not be measured: {pace}"]
    minutes = pace.minutes(command.images, command.tested)
    epochs = pace.epochs_in(minutes, command.images, command.tested) if pace.limit else pace.epochs
    measured = f"{amount(pace.images_per_s)} images/s in {pace.steps} steps"
    if pace.limit:
        lines = [f"{duration(minutes)}: about {amount(epochs)} epochs on this machine, {measured}"]
    else:
        lines = [f"about {duration(minutes)} on this machine: {epochs} epochs, {measured}"]
    if minutes > LONG and "--folds" not in command.text:
        fit = int(pace.epochs_in(LONG, command.images, command.tested))
        lines.append(
            f"--training.minutes={LONG} ends it after {duration(LONG)}, with the whole schedule in {fit} epochs"
        )
    if pace.limit and epochs < FEW:
        longer = min(LONG, math.ceil(minutes * SOME / epochs / 10) * 10)
        fit = int(pace.epochs_in(longer, command.images, command.tested))
        lines.append(f"that is few: --training.minutes={longer} makes it about {fit}")
    if pace.fits < min(pace.batch_size, command.images):
        lines.append(f"{pace.batch_size} images a step do not fit into memory: --training.batch_size=auto")
    return lines


def duration(minutes: float) -> str:
    """A length of time in words."""
    for unit, length, from_on in (("days", 24 * 60, 48 * 60), ("hours", 60, 90), ("minutes", 1, 1.5)):
        if minutes >= from_on:
            number = minutes / length
            return f"{number:.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.1f} {unit}"
    return "a minute"


def amount(number: float) -> str:
    """A number to three digits or more."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(inspect_data, prog=prog), argv)
