"""Your own images: any tree ROOT/CLASS/*, or ROOT/train/CLASS/*, ROOT/val/CLASS/* and ROOT/test/CLASS/*.

A tree without classes, images right under ROOT, makes one split whose images all have label 0, enough for pretraining.
Images right under ROOT/test have no labels (-1). A tree that can be read in two ways is refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from .image_files import LeftOut, image_files, natural_order
from .label_table import load_by_table
from .split import SPLIT_NAMES, DatasetError, Split, names_below, split_of

OPTIONS = ("labels", "file_column", "label_column", "split_column")

_Parts = tuple[str, ...]  # of a file's path below the folder that is read


def load(
    root: Path,
    labels: str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> dict[str, Split]:
    """The splits of a tree of images.

    Args:
        root: ROOT/CLASS/**, ROOT/SPLIT/CLASS/** or images right under ROOT or ROOT/SPLIT.
        labels: A table of labels; then folders are no classes. Its columns and the rest: see label_table.load_by_table.
        file_column: See there.
        label_column: See there.
        split_column: See there.

    Returns:
        Of {"train": Split, "val": Split, "test": Split} those that there are. A validation split alone is the test
        split.

    Raises:
        DatasetError: There is no such folder, or no image in it; the test split has classes of its own; or the tree can
            be read in two ways.
    """
    if not root.is_dir():
        raise DatasetError(
            f"{root} is not a folder. Name your tree of images, DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg "
            f"(convert takes it as --root DIR)."
        )
    if labels:
        return _with_test(load_by_table(root, labels, file_column, label_column, split_column))
    left_out, remarks = LeftOut(), list[str]()
    depth = len(root.parts)
    files = [path.parts[depth:] for path in image_files(root, left_out)]
    if not files:
        raise DatasetError(f"No image was found under {root}.{left_out.sentences()}")
    inner, files = _enter(root, files, remarks)
    parts = _divide(inner, files, left_out)
    splits: dict[str, Split] = {}
    for split, (folder, inside) in parts.items():
        trained = list(splits["train"].classes) if "train" in splits else None
        found = _split(inner / folder, inside, trained, split, remarks)
        splits[split] = replace(found, names=names_below(root, cast(Sequence[Path], found.images)))
    left = left_out.listing()
    return _with_test({n: replace(split, left_out=left, remarks=remarks) for n, split in splits.items()})


def _with_test(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits; a validation split is the test split where there is no other."""
    if "val" not in splits or "test" in splits:
        return splits
    splits["test"] = splits.pop("val")
    remark = "the validation split is the test split, since there is no other"
    return {name: replace(split, remarks=[*split.remarks, remark]) for name, split in splits.items()}


def _enter(root: Path, files: list[_Parts], remarks: list[str]) -> tuple[Path, list[_Parts]]:
    """Step into a folder that holds nothing but one folder with folders, as archives in archives leave them."""
    while len({parts[0] for parts in files}) == 1 and min(map(len, files)) >= 3 and not split_of(files[0][0]):
        root = root / files[0][0]
        remarks.append(f"{root} was entered: it is the only folder there")
        files = [parts[1:] for parts in files]
    return root, files


def _divide(root: Path, files: list[_Parts], left_out: LeftOut) -> dict[str, tuple[str, list[_Parts]]]:
    """{split: (folder, the files in it)}; the folder is "." for a tree without split folders."""
    folders: dict[str, list[_Parts]] = {}
    for parts in files:
        folders.setdefault(parts[0] if len(parts) > 1 else "", []).append(parts)
    loose = folders.pop("", [])
    result: dict[str, tuple[str, list[_Parts]]] = {}
    others = []
    for name in sorted(folders, key=natural_order):
        split = split_of(name)
        if split is None:
            others.append(name)
        elif split in result:
            raise DatasetError(
                f"{root} has two folders for the {split} split, {result[split][0]} and {name}. "
                f"Put the images of both into one of them, or take one away."
            )
        else:
            result[split] = name, [parts[1:] for parts in folders[name]]
    if not result:
        return {"train": (".", files)}
    if others and ("train" not in result or len(result) == 1):
        of_split = ", ".join(f"{name}/" for name, _ in result.values())
        raise DatasetError(
            f"{root} can be read in two ways: {of_split} as a split of the dataset, beside which {others[0]}/ does not "
            f"belong; or {of_split} and {others[0]}/ as classes. In the first case take {others[0]}/ away (classes "
            f"stand in ROOT/train/CLASS/), in the second rename {of_split}"
        )
    for name in others:
        first = root / name / Path(*folders[name][0][1:])
        left_out.add("images in folders beside those of the splits", first, len(folders[name]))
    left_out.add("images beside the folders of the splits", root / loose[0][0] if loose else "", len(loose))
    return {split: result[split] for split in SPLIT_NAMES if split in result}


def _split(folder: Path, files: list[_Parts], trained: Sequence[str] | None, split: str, remarks: list[str]) -> Split:
    """One split.

    Args:
        folder: What it is in.
        files: Below the folder.
        trained: The classes of the training split; None: this is it, or there is none.
        split: Its name.
        remarks: What a user should know is added.
    """
    only = files[0][0]
    while len(files[0]) > 2 and all(len(p) > 2 and p[0] == only for p in files) and only not in (trained or ()):
        folder = folder / only
        remarks.append(f"{folder} was entered: it is the only folder there")
        files = [parts[1:] for parts in files]
        only = files[0][0]
    loose = sum(len(parts) == 1 for parts in files)
    found = sorted({parts[0] for parts in files if len(parts) > 1}, key=natural_order)
    unlabelled = not found or (trained is not None and len(found) == 1 and found[0] not in trained)
    if loose and found:
        raise DatasetError(
            f"{folder} has {loose} images beside its folders, which are classes. "
            f"Put them into one of their own, or all images right into {folder}."
        )
    if unlabelled and (trained or split != "train"):
        remarks.append(f"{folder} has no folders of classes: its images have no labels (-1)")
        return Split([folder.joinpath(*parts) for parts in sorted(files)], [-1] * len(files), trained or [])
    if not found:
        return Split([folder.joinpath(*parts) for parts in sorted(files)], [0] * len(files), ["all"])
    _refuse_splits_in_classes(folder, files)
    classes = trained or found
    strange = [name for name in found if name not in classes]
    if strange:
        raise DatasetError(f"{folder} has classes that the training split does not: {', '.join(strange[:5])}.")
    number = {name: label for label, name in enumerate(classes)}
    files = sorted(files, key=lambda parts: (number[parts[0]], parts))
    return Split([folder.joinpath(*parts) for parts in files], [number[parts[0]] for parts in files], classes)


def _refuse_splits_in_classes(folder: Path, files: list[_Parts]) -> None:
    """Refuse classes that have folders of a training split and of another one inside."""
    inside: dict[_Parts, dict[str, str]] = {}
    for parts in files:
        for depth in range(len(parts) - 1):
            if split := split_of(parts[depth]):
                inside.setdefault(parts[:depth], {})[split] = parts[depth]
    for parts, splits in inside.items():
        if "train" in splits and len(splits) > 1:
            where, names = folder.joinpath(*parts), " and ".join(f"{name}/" for name in splits.values())
            raise DatasetError(
                f"{where} looks like a class, and has {names} inside. If it is the dataset, name it with --root "
                f"{where}. If each class has its splits, put them on top: ROOT/train/CLASS/* and ROOT/test/CLASS/*."
            )
