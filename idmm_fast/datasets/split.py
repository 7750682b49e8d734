"""What a dataset is to the rest of the project."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np


class DatasetError(Exception):
    """The raw files of a dataset are missing or not what they should be. The message says which and what to do."""


@dataclass(frozen=True)
class FileSlice:
    """A file inside an uncompressed archive: `size` bytes of `path` from `offset` on; `name` is for messages."""

    path: Path
    offset: int
    size: int
    name: str

    def read_bytes(self):
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self):
        return f"{self.path}:{self.name}"


@dataclass(frozen=True)
class Split:
    """One split of a dataset. `images[i]` is a file, its bytes, anything with read_bytes(), or uint8 pixels (H, W) or (H, W, 3);
    `labels[i]` indexes `classes`. `names[i]` (optional) names an image the same way on every machine."""

    images: list
    labels: list[int]
    classes: list[str]
    names: list[str] = field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def name(self, i):
        """What image `i` is called in a list of chosen images: its name, the last two parts of its path, or its number."""
        if self.names:
            return self.names[i]
        return "/".join(self.images[i].parts[-2:]) if isinstance(self.images[i], Path) else f"image {i}"

    def choose(self, rows):
        """The split of these rows only, in this order."""
        names = [self.names[i] for i in rows] if self.names else []
        return replace(self, images=[self.images[i] for i in rows], labels=[self.labels[i] for i in rows], names=names)

    def sample(self, seed, total=0, per_class=0):
        """At random `total` images, or `per_class` of each class. An image is chosen by a hash of its name and the seed, so that the
        same seed gives the same images on every machine and with every version of numpy."""
        order = sorted(
            range(len(self)),
            key=lambda i: hashlib.sha256(f"{seed} {self.name(i)}".encode("utf-8", "surrogateescape")).digest(),
        )
        if per_class:
            left = np.full(len(self.classes), per_class)
            chosen = []
            for i in order:
                if left[self.labels[i]] > 0:
                    left[self.labels[i]] -= 1
                    chosen.append(i)
            present = np.bincount(self.labels, minlength=len(self.classes)) > 0
            short = [self.classes[c] for c in np.flatnonzero((left > 0) & present)]
            if short:
                raise DatasetError(
                    f"{len(short)} classes have fewer than {per_class} images, first {short[0]}; ask for fewer a class."
                )
        else:
            if total > len(self):
                raise DatasetError(f"{total} images were asked for, and there are {len(self)}; ask for fewer.")
            chosen = order[:total]
        return self.choose(sorted(chosen))


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. A dataset's module has one as SOURCE, and `read(folder, source)`.

    address: its page. files: {name: (URL or None where it must be fetched by hand, MD5 or None)}, what is downloaded.
    markers: what is there when the raw files are, relative to the folder. folders: where below the root that folder may be.
    classes, counts ({split: images}), size, licence: for the table and the checks.
    """

    address: str
    classes: int
    counts: dict
    size: str
    licence: str
    files: dict = field(default_factory=dict)
    markers: tuple = ()
    folders: tuple = (".",)


def listed(folder, names, labels, classes, split):
    """A Split of files that a list names, relative to `folder`; DatasetError names those that are missing."""
    images = [folder / name for name in names]
    missing = [name for name, path in zip(names, images) if not path.exists()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DatasetError(f"{len(missing)} of {len(names)} {split} images are missing under {folder}: {shown}")
    return Split(images, labels, classes)
