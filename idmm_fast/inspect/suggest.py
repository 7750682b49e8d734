"""The commands that fit so many images of such a size."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..beton import Beton
from ..convert import TEST_SHARE
from ..datasets import held_out_of, name_tests
from .look import Inspection

SMALL_TEST = 200  # test images; of fewer, an accuracy of 50 % is known to 3.5 points or worse (its standard error)
FOLDS = 5  # of cross-validation, where classes have so many images


@dataclass(frozen=True)
class Command:
    """A command of the console.

    Attributes:
        verb: pretrain, finetune, ...
        text: It whole, as it is typed.
        keys: What it sets beyond the configuration `own`, {"model.image_size": 64}.
        images: Training images of all its trainings together, once each.
        tested: Test images, likewise.
        why: A sentence, or "".
    """

    verb: str
    text: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    tested: int = 0
    why: str = ""


@dataclass(frozen=True)
class Suggestion:
    """What would be done with the images.

    Attributes:
        head: How many there are, and of which size; or that there are none.
        rows: Numbers of the training images that can be read.
        commands: One after the other.
        missing: Why no fine-tuning is among them, or "".
    """

    head: str
    rows: Sequence[int]
    commands: Sequence[Command]
    missing: str = ""


def suggest(found: Inspection, paths: Sequence[Path], name: str, labels: Mapping[str, str] | None = None) -> Suggestion:
    """Commands for what was found.

    Args:
        found: What `inspect` gave.
        paths: What it was given.
        name: What the runs are called, see `run_name`.
        labels: As for `inspect`.
    """
    if found.stored and found.training != "train":
        why = f"{labels['labels']} names none" if labels else f"add {paths[0]}/train/CLASS"
        return Suggestion(f"no training images: {why}", [], [])
    good = found.good(found.training)
    side = float(np.median([min(i.height, i.width) for i in good])) if good else 0.0
    stored = f", stored as {found.stored}" if found.stored else ""
    head = f"for {len(good):,} training images with a shorter side of {side:.0f} pixels{stored}"
    commands: list[Command] = []
    missing = ""
    if good:
        counts = Counter(image.label for image in good if image.label >= 0)
        tests = _test_images(found, bool(labels))
        data, test = _data(found, paths, name, bool(labels), tests)
        missing = _missing(counts, tests, test)
        held_out: Counter[int] = Counter()
        if not (missing or tests or test is None):
            held_out.update({label: held_out_of(n, TEST_SHARE) for label, n in counts.items()})
        if labels:
            commands.append(_convert(paths[0], name, labels, bool(held_out)))
        size = next((s for s in (112, 64) if side >= s), 32)
        options = {112: {}, 64: {"patch_size": 8}, 32: {"patch_size": 4}}[size]
        keys = {"model.image_size": size, "model.options": options}
        pretrain = f"idmm-fast pretrain --config own --data {data}{_typed(keys, 112)} --out runs/{name}"
        commands.append(Command("pretrain", pretrain, keys, len(good) - (held_out.total() if labels else 0)))
        if not missing:
            keys = {"model.image_size": 224 if side >= 160 else size, "model.options": options}
            rest = f" --init runs/{name}{_typed(keys, 224)} --out runs/{name}"
            words = f"idmm-fast finetune --config own --data {data}", rest
            commands += _finetunings(words, keys, counts, held_out, tests, test)
    return Suggestion(head, [image.row for image in good], commands, missing)


def run_name(path: Path) -> str:
    """What the runs of a folder or a beton are called: its name, without what a shell would take apart."""
    name = path.resolve().name.removesuffix(".beton").removesuffix("_train")
    return re.sub(r"[^\w.-]+", "_", name)


def _test_images(found: Inspection, has_table: bool) -> int:
    """How many images with labels the test split of a fine-tuning has; 0: there is no such split.

    That of a folder may be its validation split; see convert.convert.
    """
    splits = {name: source for name, source in found.sources.items() if not isinstance(source, Beton)}
    test = name_tests(splits, val=not has_table).get("test") if splits else found.sources.get("test")
    return sum(i.label >= 0 for name, source in found.sources.items() if source is test for i in found.good(name))


def _missing(counts: Mapping[int, int], tests: int, test: str | None) -> str:
    """Why there can be no fine-tuning, or ""; see `_finetunings`."""
    if len(counts) < 2:
        return "no fine-tuning: it takes images of two classes"
    if test is None and min(counts.values()) < 2:
        return (
            "no fine-tuning: there are no test images with labels, and a class of one image allows no cross-validation "
            "(--folds)"
        )
    if not tests and max(counts.values()) < 2:
        return "no fine-tuning: each class has one image, so none can be held out for testing"
    return ""


def _data(found: Inspection, paths: Sequence[Path], name: str, has_table: bool, tests: int) -> tuple[str, str | None]:
    """(what --data is given, what --data.test is given; "" where that is not needed, None where there is nothing).

    `tests` are the test images with labels, see `_test_images`.
    """
    if has_table:
        return f"data/{name}_train.beton", f"data/{name}_test.beton"
    if found.stored:
        return shlex.quote(str(paths[0])), ""
    files = {split: shlex.quote(str(source.path)) for split, source in found.sources.items()}  # type: ignore[union-attr]
    return files[found.training], files["test"] if tests else None


def _convert(folder: Path, name: str, labels: Mapping[str, str], hold_out: bool) -> Command:
    """The conversion of a folder with a table of labels."""
    given = [f"--{option.replace('_', '-')} {shlex.quote(value)}" for option, value in labels.items()]
    share = [f"--test-share {TEST_SHARE:g}"] if hold_out else []
    words = ["idmm-fast convert --ds folder --root", shlex.quote(str(folder)), *given, *share, f"--name {name}"]
    return Command("convert", " ".join(words))


def _typed(keys: Mapping[str, Any], default_size: int) -> str:
    """Keys as they are typed, with a blank before; those that `own` has by itself are left out."""
    size, options = keys["model.image_size"], keys["model.options"]
    text = f" --model.image_size={size}" if size != default_size else ""
    return text + (f" --model.options='{{patch_size: {options['patch_size']}}}'" if options else "")


def _finetunings(
    words: tuple[str, str],
    keys: Mapping[str, Any],
    counts: Counter[int],
    held_out: Counter[int],
    tests: int,
    test: str | None,
) -> list[Command]:
    """Fine-tuning, and cross-validation where test images are few.

    Args:
        words: The command before and after --data.test; it ends in the run's name.
        keys: What it sets.
        counts: Training images of each class.
        held_out: How many of them become test images.
        tests: Other test images with labels.
        test: See `_data`.
    """
    labelled, held = counts.total(), held_out.total()
    parts = counts - held_out if test else counts  # a conversion with --test-share leaves those out of its train.beton
    commands, tested, folds = [], tests + held, min(FOLDS, *parts.values())
    few = f"{tested:,} test images know an accuracy to about {50 / max(1, tested) ** 0.5:.0f} points"
    if tested:
        given = f" --data.test={test}" if test else ""
        whys = [] if tests else [f"it holds out {held:,} of the {labelled:,} images for testing"]
        if tested < SMALL_TEST and folds < 2:
            whys.append(f"{few}, and a class with one image for training allows no cross-validation (--folds)")
        text = f"{words[0]}{given}{words[1]}_finetune"
        commands.append(Command("finetune", text, keys, labelled - held, tested, "; ".join(whys)))
    if tested < SMALL_TEST and folds > 1:
        why = (
            f"{few if commands else 'there are no test images with labels'}; {folds} folds test {parts.total():,} "
            f"images, each once"
        )
        text = f"{words[0]}{words[1]}_folds --folds {folds}"
        commands.append(Command("finetune", text, keys, (folds - 1) * parts.total(), parts.total(), why))
    run = commands[0].text.rpartition(" --out ")[2].partition(" ")[0]
    network = f"{run}/fold_1" if "--folds" in commands[0].text else run
    return [*commands, Command("predict", f"idmm-fast predict --checkpoint {network} --images NEW_IMAGES")]
