"""What a dataset is to the rest of the project: one vocabulary, so it is kept in one file, longer than most."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..errors import DatasetError
from .image_files import EXTENSIONS, is_hidden

# In lower case, without blanks, hyphens and underscores.
SPLIT_NAMES = {
    "train": ("train", "training", "trn", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "dev", "valset", "validset", "validationset", "devset"),
    "test": ("test", "testing", "tst", "testset", "testingset"),
}


class Readable(Protocol):
    """An encoded image that is read when it is asked for."""

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        ...


ImageSource: TypeAlias = Readable | bytes | np.ndarray
"""A file (Path), its bytes, anything else with read_bytes(), or uint8 pixels (H, W) or (H, W, 3)."""


@dataclass(frozen=True)
class FileSlice:
    """A file inside an uncompressed archive.

    Attributes:
        path: The archive.
        offset: Where in it the file begins, in bytes.
        size: Of the file, in bytes.
        name: Of the file, for messages.
    """

    path: Path
    offset: int
    size: int
    name: str

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
        images: One source an image, see ImageSource.
        labels: Of each image, indexes of `classes`; -1 for none.
        classes: Names of the classes.
        names: Of each image, the same on every machine; may be left out.
        left_out: What the dataset's raw files hold beside, {"reason", "count", "first"} each; of all splits together.
        remarks: Sentences on how the raw files were read; of all splits together.
    """

    images: Sequence[ImageSource]
    labels: Sequence[int]
    classes: Sequence[str]
    names: Sequence[str] = field(default_factory=list)
    left_out: Sequence[Mapping[str, Any]] = ()
    remarks: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """What image `i` is called in a list of images: its name, the last two parts of its path, or its number."""
        if self.names:
            return self.names[i]
        source = self.images[i]
        return "/".join(source.parts[-2:]) if isinstance(source, Path) else f"image {i}"

    def images_per_class(self) -> list[int]:
        """How many images each class has; those without a label are not counted."""
        labels = np.asarray(self.labels, np.int64)
        return np.bincount(labels[labels >= 0], minlength=len(self.classes)).tolist()

    def choose(self, rows: Sequence[int]) -> "Split":
        """The split of these rows only, in this order."""
        names = [self.names[i] for i in rows] if self.names else []
        return replace(self, images=[self.images[i] for i in rows], labels=[self.labels[i] for i in rows], names=names)

    def _shuffled(self, seed: int) -> list[int]:
        """The rows in the order of a hash of their names and the seed."""
        return sorted(
            range(len(self)),
            key=lambda i: hashlib.sha256(f"{seed} {self.name(i)}".encode("utf-8", "surrogateescape")).digest(),
        )

    def hold_out(self, fraction: float, seed: int) -> tuple["Split", "Split"]:
        """Divide into a training and a test split, each class alike.

        The test images are the last of the order whose first `sample` takes: with the same seed a sample of all images
        has none of them, unless it is larger than what is left. Images without a label stay in the training split.

        Args:
            fraction: Of each class that goes into the test split, 0 to 1; at least one image of a class that has two.
            seed: Any integer.

        Returns:
            Training split, test split; both in the order of this one.

        Raises:
            DatasetError: No class has two images.
        """
        counts = self.images_per_class()
        left = [held_out_of(count, fraction) for count in counts]
        test = set()
        for i in reversed(self._shuffled(seed)):
            if self.labels[i] >= 0 and left[self.labels[i]] > 0:
                left[self.labels[i]] -= 1
                test.add(i)
        if not test:
            raise DatasetError("no class has two images, so none can be held out for testing.")
        return self.choose([i for i in range(len(self)) if i not in test]), self.choose(sorted(test))

    def has_labels(self) -> bool:
        """Whether any image has a label."""
        return any(label >= 0 for label in self.labels)

    def sample(self, seed: int, total: int = 0, per_class: int = 0) -> "Split":
        """Choose images at random.

        An image is chosen by a hash of its name and the seed, so that the same seed gives the same images on every
        machine and with every version of numpy.

        Args:
            seed: Any integer.
            total: How many images in all; not used where per_class is given.
            per_class: How many images of each class that has any.

        Returns:
            The chosen images, in the order of this split.

        Raises:
            DatasetError: There are fewer images than asked for.
        """
        order = self._shuffled(seed)
        if per_class:
            left = np.full(len(self.classes), per_class)
            chosen = []
            for i in order:
                if self.labels[i] >= 0 and left[self.labels[i]] > 0:
                    left[self.labels[i]] -= 1
                    chosen.append(i)
            present = np.array(self.images_per_class()) > 0
            short = [self.classes[c] for c in np.flatnonzero((left > 0) & present).tolist()]
            if short:
                raise DatasetError(
                    f"{len(short)} classes have fewer than {per_class} images, first {short[0]}; ask for fewer a class."
                )
        else:
            if total > len(self):
                raise DatasetError(f"{total} images were asked for, and there are {len(self)}; ask for fewer.")
            chosen = order[:total]
        return self.choose(sorted(chosen))


def names_below(root: Path, images: Sequence[Path]) -> list[str]:
    """What images are called in lists, and chosen by: the last two parts of their paths below `root`.

    So the names do not depend on what the root is called, or how it is typed.

    Args:
        root: The folder.
        images: Paths that begin with `root`.
    """
    depth = len(root.parts)
    return ["/".join(image.parts[depth:][-2:]) for image in images]


def held_out_of(count: int, fraction: float) -> int:
    """How many of a class of `count` images are held out: at least one, and never all; see `Split.hold_out`."""
    return min(max(1, round(fraction * count)), count - 1)


def split_of(name: str) -> str | None:
    """Which split a folder of this name holds: train, val or test; None: none."""
    plain = re.sub("[ _-]", "", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if plain in names), None)


def name_tests(splits: Mapping[str, Split], val: bool) -> dict[str, Split]:
    """The splits, renamed so that "test" has labels, if there is one; a test split without is "unlabelled".

    Args:
        splits: {name: Split}.
        val: Whether a validation split with labels becomes the test split where there is no other.
    """
    result = dict(splits)
    if "test" in result and not result["test"].has_labels():
        result["unlabelled"] = result.pop("test")
    if val and "test" not in result and "val" in result and result["val"].has_labels():
        result["test"] = result.pop("val")
    return result


def with_test_split(splits: Mapping[str, Split], share: float, seed: int) -> dict[str, Split]:
    """Make a test split of a share of the training split, for datasets that have none.

    A test split without labels is renamed to "unlabelled": nothing can be tested on it.

    Args:
        splits: {"train": Split, ...}, without a test split that has labels.
        share: Of each class, 0 to 1; see `Split.hold_out`.
        seed: Of the choice.

    Returns:
        The splits, "train" and "test" among them. Each has a remark that says so.

    Raises:
        DatasetError: There is no training split, or no class of it has two images.
    """
    if "train" not in splits:
        raise DatasetError(
            f"there are no training images to hold out a test split of, only those of: {', '.join(splits)}. Add a "
            f"training split."
        )
    result = {("unlabelled" if name == "test" else name): split for name, split in splits.items()}
    whole = result["train"]
    result["train"], result["test"] = whole.hold_out(share, seed)
    remark = (
        f"{len(result['test']):,} of the {len(whole):,} training images, {100 * share:g} % of each class by a hash of "
        f"their names, are the test split, since there is no other with labels"
    )
    return {name: replace(split, remarks=[*split.remarks, remark]) for name, split in result.items()}


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. A dataset's module has one as SOURCE.

    Attributes:
        address: Its page.
        classes: How many there are.
        counts: {split: number of images}, official.
        size: Of the download, for the table of datasets.
        licence: In a word or two.
        files: {name: (URL, or None where it must be fetched by hand; MD5, or None)}, what is downloaded.
        markers: Paths that exist where the raw files are, relative to their folder.
        folders: Where below the root that folder may be.
    """

    address: str
    classes: int
    counts: dict[str, int]
    size: str
    licence: str
    files: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    folders: tuple[str, ...] = (".",)

    def at(self, folder: Path, path: str) -> Path:
        """Where a raw file or folder is, also where a mirror has packed it otherwise.

        Args:
            folder: What `raw_files.locate` returns.
            path: Where upstream has it, relative to the folder of the raw files, with forward slashes.

        Returns:
            The first that exists of `path` in `folder` and in its `folders`. Any folder on the way may hold itself once
            more (cars_train/cars_train), as archives in archives leave them. `folder / path` where there is none.
        """
        ways = ((*PurePosixPath(inside).parts, *PurePosixPath(path).parts) for inside in self.folders)
        return next(filter(None, (_doubled(folder, way) for way in ways)), folder / path)


def _doubled(folder: Path, way: Sequence[str]) -> Path | None:
    """A path below a folder, each part of which may be there twice; None where there is none."""
    if not way:
        return folder
    once, rest = folder / way[0], way[1:]
    if not once.exists():
        return None
    twice = once / way[0]
    if not twice.is_dir():
        return _doubled(once, rest)
    others = (entry for entry in once.iterdir() if entry.name != way[0] and not is_hidden(entry.name))
    emptied = not rest and not any(entry.is_dir() or entry.suffix.lower() in EXTENSIONS for entry in others)
    return (None if emptied else _doubled(once, rest)) or _doubled(twice, rest)


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, without blanks at their ends."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def listed(folder: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str], split: str) -> Split:
    """A split of files that a list names.

    Args:
        folder: What the names are relative to.
        names: One an image.
        labels: One an image, indexes of `classes`.
        classes: Names of the classes.
        split: Its name, for messages.

    Raises:
        DatasetError: Files are missing; the message counts them and names the first five.
    """
    images = [folder / name for name in names]
    missing = [name for name, path in zip(names, images) if not path.exists()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DatasetError(f"{len(missing)} of {len(names)} {split} images are missing under {folder}: {shown}")
    return Split(images, labels, classes)
