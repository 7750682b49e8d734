"""Training and test images: whether a label means the same class in both, and whether images are in both."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from ..beton import Beton, BetonError
from ..runtime import distributed


def labelled_rows(train: Beton) -> np.ndarray:
    """int64 (n,): the training images that have a label; the others are left out.

    Raises:
        BetonError: none has one, or all are of one class.
    """
    rows = np.flatnonzero(train.label >= 0)
    if rows.size == 0:
        raise BetonError(f"no image of {train.path} has a label; evaluation and fine-tuning need them")
    first = train.label[rows[0]]
    if (train.label[rows] == first).all():
        raise BetonError(
            f"{train.path} has one class only, {train.classes[first]!r}; evaluation and fine-tuning need two classes. "
            f"Put the images of each class into a folder of its own: FOLDER/CLASS/"
        )
    return rows


def match_labels(train: Beton, test: Beton) -> np.ndarray:
    """The labels of `test` in the class numbers of `train`.

    Classes are compared by name where both files have the names of theirs. They may be in another order, and one file
    may lack classes of the other: images of classes that training does not have can't be right, which is said.

    Args:
        train: the training images.
        test: the test images.

    Returns:
        int64 (len(test),). Classes that `train` lacks are numbered after its own.

    Raises:
        BetonError: test images have no label, those of `train` have none or are all of one class, or neither file's
            classes are among those of the other; the message says which.
    """
    missing = int((test.label < 0).sum())
    if missing:
        raise BetonError(
            f"{missing} of {len(test)} images of {test.path} have no label; evaluation and fine-tuning need those of "
            f"test images"
        )
    labelled_rows(train)
    labels, strange = _matched(train, test)
    if unknown := int((labels >= len(train.classes)).sum()) if strange else 0:
        tqdm.write(
            f"{unknown} of {len(test)} images of {test.path} are of classes that {train.path} does not have "
            f"({_some(strange)}); they can only be wrong"
        )
    return labels


def warn_of_shared(train: Beton, test: Beton) -> None:
    """Say so where test images are among the training images: their accuracy says little."""
    shared = test.count_shared(train) if distributed.rank() == 0 else 0
    if shared:
        tqdm.write(
            f"warning: {shared} of {len(test)} images of {test.path} are in {train.path} too, so accuracy on them is "
            f"too good",
            file=sys.stderr,
        )


def class_names(train: Beton, test: Beton) -> list[str]:
    """The names of all classes, in the order of the numbers that `match_labels` gives."""
    labels, strange = _matched(train, test)
    names = [*(train.sidecar.get("classes") or test.sidecar.get("classes") or []), *strange]
    count = 1 + int(max(train.label.max(), labels.max()))
    return [*names, *(f"class_{k}" for k in range(len(names), count))][:count]


def _matched(train: Beton, test: Beton) -> tuple[np.ndarray, list[str]]:
    """(the labels of `test` in the numbers of `train`; the classes that only `test` has, numbered after those)."""
    ours, theirs = (beton.sidecar.get("classes") for beton in (train, test))
    if not ours or not theirs or ours == theirs:
        return test.label, []
    _refuse_repeated(train, ours)
    _refuse_repeated(test, theirs)
    strange = [name for name in theirs if name not in set(ours)]
    if strange and not set(ours) <= set(theirs):
        lacking = [name for name in ours if name not in set(theirs)]
        raise BetonError(
            f"{train.path} and {test.path} have other classes: {_some(lacking)} only in the first, {_some(strange)} "
            f"only in the second. Convert both at once: a folder with train/CLASS and test/CLASS."
        )
    number = {name: k for k, name in enumerate([*ours, *strange])}
    return np.array([number[name] for name in theirs])[test.label], strange


def _refuse_repeated(beton: Beton, names: Sequence[str]) -> None:
    repeated = [name for k, name in enumerate(names) if name in names[:k]]
    if repeated:
        raise BetonError(
            f"{beton.path} has two classes of the name {repeated[0]!r}, so classes can't be compared by name"
        )


def _some(names: Sequence[str]) -> str:
    """The first of these names."""
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
