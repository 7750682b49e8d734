"""A folder of images as FFCV datasets (`.beton` files), converted once and kept."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .files import replacing
from .limits import cache_folder
from .lock import Lock

if TYPE_CHECKING:
    from .datasets import Split

TEST_SHARE = 0.2  # of each class, held out by a fine-tuning where there is no test split
# In place of what `convert` gives, so that a configuration is checked before: files that are there.
STAND_INS = dict.fromkeys(("train", "val", "test"), Path(os.devnull))


def convert(data: str | Path, test_share: float = 0.0) -> dict[str, Path]:
    """The FFCV datasets of `data`.

    A folder is converted once, and again when its files change. The results are kept under ~/.cache/idmm_fast, or where
    the environment variable IDMM_FAST_CACHE says (without either, in a temporary folder). Beside each is a .txt with
    the file of every row, one a line; where a name has a line break in it, each name ends in a zero byte instead. While
    another process converts the same folder, this one waits for it.

    Args:
        data: a .beton file, or a folder of images: FOLDER/CLASS/*, FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or
            images without classes.
        test_share: 0 to 1. Above 0, a folder without a labelled test split gets one: its validation split, or else this
            share of each class of its training images. Which images is the same on every machine.

    Returns:
        {"train": path}, and of "val" and "test" (whose images have labels) those that there are.

    Raises:
        DatasetError: for a folder that is not laid out so, or has no training images.
        WriteError: if the conversion fails.
    """
    from .datasets import folder

    data = Path(data)
    if data.suffix == ".beton":
        return {"train": data}
    splits, held_out = _with_tests(folder.load(data), test_share, data)
    target = cache_folder() / f"{data.resolve().name}-{_fingerprint(data, splits, held_out)[:12]}"
    betons = {name: target / f"{name}.beton" for name in splits}

    def missing() -> list[str]:
        return [name for name, beton in betons.items() if not _is_converted(beton)]

    if missing():
        target.mkdir(parents=True, exist_ok=True)
        with Lock(target / ".lock", str(target), wait=True):
            _write(betons, splits, missing(), data)  # perhaps none, after waiting for another process
    elif held_out:
        print(splits["test"].remarks[-1])
    return betons


def list_files(beton: Path, files: Sequence[str]) -> None:
    """Write the file of every row beside a beton, where `listed_files` finds them; no list of []."""
    if not files:
        _list_of(beton).unlink(missing_ok=True)
        return
    end = "\0" if any("\n" in file for file in files) else "\n"
    with replacing(_list_of(beton)) as draft:
        draft.write_bytes(_bytes("".join(file + end for file in files)))


def listed_files(beton: Path) -> list[str]:
    """The file of every row of a beton of a folder that `convert` made, or of a fold of one; [] of any other beton."""
    listed = _list_of(beton)
    if not listed.exists():
        return []
    content = listed.read_bytes()
    return os.fsdecode(content).split("\0" if content.endswith(b"\0") else "\n")[:-1]  # \0: names with line ends


def shown_stem(beton: Path) -> str:
    """What tells a beton from others: the name of its file; of one that `convert` made, with its folder's before it."""
    return f"{beton.parent.name.rpartition('-')[0]}_{beton.stem}" if _is_ours(beton) else beton.stem


def _is_converted(beton: Path) -> bool:
    """Whether a beton and the list beside it are there; one that was damaged since does not count."""
    from .beton import BetonError, open_beton

    try:
        open_beton(beton)
    except (BetonError, OSError):
        return False
    return _list_of(beton).exists()


def _list_of(beton: Path) -> Path:
    """Where the files of a beton's rows are listed. Outside the cache a .txt has what `--subset` chose, by name."""
    return beton.with_suffix(".txt" if _is_ours(beton) else ".files.txt")


def _is_ours(beton: Path) -> bool:
    return beton.resolve().parent.parent == cache_folder().resolve()


def _with_tests(splits: dict[str, Split], test_share: float, data: Path) -> tuple[dict[str, Split], float]:
    """(the splits to convert, the share of the training images that "test" was made of)."""
    from .datasets import DatasetError, name_tests, with_test_split

    if "train" not in splits:
        raise DatasetError(
            f"{data} has no training images, only those of: {', '.join(splits)}. Add {data}/train/CLASS."
        )
    splits = name_tests(splits, val=test_share > 0)
    splits.pop("unlabelled", None)  # nothing reads it from a beton; predictions are of the files
    if "test" in splits or not test_share:
        return splits, 0.0
    return with_test_split(splits, test_share, 0), test_share


def _fingerprint(data: Path, splits: Mapping[str, Split], held_out: float) -> str:
    """Hex digits that change with the folder's name, its images' names, sizes and times, and the share held out.

    Of the times ctime too: a file that another one of its size and mtime replaced has another.
    """
    seen = hashlib.sha256(_bytes(str(data.resolve())))
    if held_out:
        seen.update(_bytes(f"test share {held_out}\n"))
    for split in splits.values():
        for path in cast(Sequence[Path], split.images):
            state = path.stat()
            seen.update(_bytes(f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n"))
    return seen.hexdigest()


def _write(betons: Mapping[str, Path], splits: Mapping[str, Split], names: Sequence[str], data: Path) -> None:
    """Write splits of the folder `data`, beside each the list of the file of every row; and give an account."""
    from .beton import account_lines, printable, write_beton

    accounts = {}
    for name in names:
        beton, split = betons[name], splits[name]
        counts = {each: len(content) for each, content in splits.items()}
        written = write_beton(beton, split, dataset="folder", name=name, splits=counts)
        list_files(beton, [str(split.images[place]) for place in written.places])
        skipped = f", {len(written.skipped)} skipped" if written.skipped else ""
        print(printable(f"{beton}: {written.count} images of {data}{skipped}"))
        accounts[name] = written.account
    for line in account_lines(accounts, {name: split.classes for name, split in splits.items()}):
        print(line, file=sys.stderr)


def _bytes(text: str) -> bytes:
    """Text with names of files in it, to the names' own bytes in any locale."""
    return text.encode("utf-8", "surrogateescape")
