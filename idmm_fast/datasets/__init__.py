"""The datasets, one file each.

To add one, put a module here. The first line of its docstring says what the dataset is. It has

    SOURCE: Source                                # where it comes from, how many images it has (see split.py)
    def read(folder: Path) -> dict[str, Split]    # "train", "test", ... from the raw files as upstream lays them out

Downloading, unpacking, checking the counts and choosing a subset are done here, the same for all. A module that finds
its data by itself has load(root) instead of both.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType

from ..lock import Lock
from .raw_files import find_folder, locate, writable_root
from .split import DatasetError, FileSlice, ImageSource, Source, Split, held_out_of, name_tests, with_test_split
from .split_list import SplitList, choose_listed, read_split_list

__all__ = [
    "DatasetError",
    "FileSlice",
    "ImageSource",
    "Source",
    "Split",
    "SplitList",
    "choose_listed",
    "describe",
    "held_out_of",
    "load",
    "name_tests",
    "names",
    "raw_folder",
    "read_split_list",
    "table",
    "unknown",
    "with_test_split",
]


def names() -> list[str]:
    """The names of all datasets, sorted. (A module's underscore is a hyphen in the name.)"""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(m.replace("_", "-") for m in found if hasattr(_import(m), "load") or hasattr(_import(m), "read"))


def _import(module: str) -> ModuleType:
    return importlib.import_module(f".{module}", __name__)


def unknown(name: str) -> str:
    """What to say of a name that no dataset has."""
    return f"There is no dataset '{name}'. The names are: {', '.join(names())}."


def _module(name: str) -> ModuleType:
    if name not in names():
        raise DatasetError(unknown(name))
    return _import(name.replace("-", "_"))


def describe(name: str) -> str:
    """One line on what the dataset is."""
    return (_module(name).__doc__ or "").strip().splitlines()[0]


def raw_folder(name: str, parent: str = "data/raw") -> Path:
    """The default folder of a dataset's raw files; sin10k's are ImageNet's."""
    return Path(parent) / getattr(_module(name), "BASE", name)


def table() -> list[tuple[str, ...]]:
    """Rows (name, classes, train, test, size, licence, where from) of strings, the headings first."""
    rows: list[tuple[str, ...]] = [("name", "classes", "train", "test", "size", "licence", "where from")]
    for name in names():
        source = getattr(_module(name), "SOURCE", None)
        if source is None:
            rows.append((name, "", "", "", "", "", describe(name).split(":")[0]))
        else:
            counts = [f"{source.counts[s]:,}" if s in source.counts else "" for s in ("train", "test")]
            rows.append((name, str(source.classes), *counts, source.size, source.licence, source.address))
    return rows


def load(
    name: str,
    root: Path,
    /,
    *,
    partial: bool = False,
    whole: bool = False,
    seed: int = 0,
    test_share: float = 0.0,
    subset: int = 0,
    per_class: int = 0,
    total: int = 0,
    **options: str | None,
) -> dict[str, Split]:
    """The splits of a dataset.

    Args:
        name: One of `names()`.
        root: Where its raw files are, or are downloaded to.
        partial: Take what is there, whatever the official counts.
        whole: All images of a dataset that is a choice of another's (sin10k).
        seed: Of the random choices below.
        test_share: Of each class, held out as the test split before any other choice; see `with_test_split`.
        subset: At most so many images of each split; 0 for all.
        per_class: So many training images of each class; 0 for all.
        total: So many training images in all; 0 for all.
        **options: unpack_to, where archives are unpacked if `root` can't be written; and of single datasets: shards,
            no_labels (webdataset), name, label_column (hf), labels and its columns (folder).

    Returns:
        {"train": Split, "test": Split, ...}

    Raises:
        DatasetError: The raw files are missing, can't be fetched or are not what they should be; there is a test split
            with labels, and test_share.
    """
    module = _module(name)
    if hasattr(module, "read"):
        unpack_to = options.get("unpack_to")
        root = writable_root(module.SOURCE, Path(root), Path(unpack_to) if unpack_to else None)
        with _alone(root) if hasattr(module, "prepare") or not find_folder(module.SOURCE, root) else nullcontext():
            if hasattr(module, "prepare"):
                module.prepare(root)
            folder = locate(module.SOURCE, root)
        splits = module.read(folder)
        if not whole:
            per_class = per_class or (0 if total else getattr(module, "PER_CLASS", 0))
            total = total or getattr(module, "TOTAL", 0)
        if not hasattr(module, "BASE"):  # a sample is counted after it is drawn
            _check_counts(name, module.SOURCE, splits, partial)
    else:
        splits = module.load(root, **{k: options.get(k) for k in getattr(module, "OPTIONS", ())})
    if test_share:
        if "test" in splits and splits["test"].has_labels():
            raise DatasetError(f"{root} has a test split; leave out --test-share.")
        splits = with_test_split(splits, test_share, seed)
    if per_class or total:
        if "train" not in splits:
            raise DatasetError(
                f"there are no training images to choose from (--per-class, --total), only those of: "
                f"{', '.join(splits)}. Add a training split, or take --subset, which chooses from every split."
            )
        splits["train"] = splits["train"].sample(seed, total, per_class)
    if subset:
        splits = {split: content.sample(seed, min(subset, len(content))) for split, content in splits.items()}
    return splits


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other processes from fetching and unpacking the same files at the same time."""
    made, lock = not root.exists(), None
    with suppress(OSError):  # nothing is fetched or unpacked into a folder that can't be written
        root.mkdir(parents=True, exist_ok=True)
        lock = Lock(root / ".lock", str(root), wait=True)
    try:
        with lock or nullcontext():
            yield
    finally:
        if made:
            with suppress(OSError):  # it holds something
                root.rmdir()


def _check_counts(name: str, source: Source, splits: dict[str, Split], partial: bool) -> None:
    """Say where a dataset is not complete; for ImageNet, that is an error."""
    wrong = {
        s: (len(splits[s]), wanted) for s, wanted in source.counts.items() if s in splits and len(splits[s]) != wanted
    }
    if not wrong:
        return
    said = "; ".join(f"{split}: {found:,} images, officially {wanted:,}" for split, (found, wanted) in wrong.items())
    if not partial and name == "imagenet":  # no list says which files there should be, so the count is the only check
        counts = dict.fromkeys(splits["train"].classes, 0)
        for label in splits["train"].labels:
            counts[splits["train"].classes[label]] += 1
        fewest = sorted(counts, key=lambda c: counts[c])[:5]
        raise DatasetError(
            f"{said}. The classes with fewest training images: {', '.join(f'{c} ({counts[c]})' for c in fewest)}. "
            f"Unpack the archives again, or take what is there with --partial."
        )
    if not partial:
        print(
            f"warning: {name} is not complete, so figures can't be compared with published ones ({said})",
            file=sys.stderr,
        )
