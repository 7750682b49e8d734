"""A dataset of Hugging Face's `datasets` (pip install datasets): --name REPOSITORY, or a folder made by save_to_disk.

The column of images is found by its type, that of labels by its type or its name. Source: the datasets package.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from .image_files import LeftOut, natural_order
from .split import DatasetError, Split, split_of

OPTIONS = ("name", "label_column")
# Columns of numbers or text that are taken for labels by their names, the first that there is.
LABELS = ("label", "labels", "fine_label", "class", "class_name", "category", "target", "species", "breed")


@dataclass(frozen=True)
class Item:
    """An image of a table that is on disk: its bytes are read when they are asked for."""

    table: Any
    column: str
    row: int

    def read_bytes(self) -> bytes:
        """The bytes of the file. Raises ValueError where the row has no image."""
        image = self.table[self.row][self.column]
        if image is None or (image["bytes"] is None and not image["path"]):
            raise ValueError("the row has no image")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def __str__(self) -> str:
        return f"row {self.row} of {self.table.info.dataset_name or 'the dataset'}"


def load(root: Path | None, name: str | None, label_column: str | None = None) -> dict[str, Split]:
    """The splits of a dataset.

    Args:
        root: Not used.
        name: A repository, or a folder made by save_to_disk.
        label_column: The column of labels; None: the one of class labels, else the first of LABELS.

    Returns:
        Of {"train": Split, "val": Split, "test": Split} those that there are. A validation split is the test split
        where there is no other, or none with labels.

    Raises:
        DatasetError: The package is not installed, or the dataset can't be loaded or holds no images.
    """
    try:
        import datasets
    except ImportError:
        raise DatasetError("--ds hf needs the package `datasets`: pip install datasets") from None
    if not name:
        raise DatasetError("--ds hf needs --name: a repository like uoft-cs/cifar10, or a folder made by save_to_disk.")
    try:
        found = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # the package raises many kinds
        raise DatasetError(
            f"the dataset '{name}' could not be loaded ({type(error).__name__}: {error}). "
            f"Without a network, load it elsewhere, save it with save_to_disk, and name that folder with --name."
        ) from None
    parts = found if isinstance(found, dict) else {"train": found}
    left_out = LeftOut()
    tables: dict[str, Any] = {}
    for part in parts:
        split = split_of(part)
        if split is None or split in tables:
            left_out.add("splits that are neither training, validation nor test", part)
        else:
            tables[split] = parts[part]
    if not tables:
        raise DatasetError(f"'{name}' has the splits {', '.join(parts)}, none of which is a train or test split.")
    splits: dict[str, Split] = {}
    for split in ("train", "val", "test"):
        if split in tables:
            trained = splits["train"].classes if "train" in splits else None
            splits[split] = _split(tables[split], datasets, label_column, list(trained) if trained else None)
    return {key: replace(split, left_out=left_out.listing()) for key, split in _with_labelled_test(splits).items()}


def _with_labelled_test(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits, the validation split as the test split where there is no other with labels."""
    test = splits.get("test")
    if "val" not in splits or (test and (test.has_labels() or not splits["val"].has_labels())):
        return splits
    why = "has labels, and the test split has none (it is left out)" if test else "is the only one beside training"
    splits["test"] = splits.pop("val")
    remark = f"the validation split is the test split: it {why}"
    return {name: replace(split, remarks=[*split.remarks, remark]) for name, split in splits.items()}


def _split(table: Any, datasets: ModuleType, label_column: str | None, trained: list[str] | None) -> Split:
    """The images and labels of a table of the package `datasets`; `trained` are the classes of the training split."""
    images = [c for c, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise DatasetError(f"the dataset has no column of images (columns: {', '.join(table.features)}).")
    named = [c for c, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    column = label_column or next(iter(named + [c for c in LABELS if c in table.features]), None)
    if column is not None and column not in table.features:
        raise DatasetError(f"the dataset has no column {column} (columns: {', '.join(table.features)}).")
    if column is None:
        labels, classes = [0] * len(table), ["all"]
        remarks = [f"no column is one of labels (columns: {', '.join(table.features)}; name one with --label-column)"]
    else:
        labels, classes = _encode_labels(table[column], column, _class_names(table.features[column]), trained)
        remarks = [f"labels are those of the column {column}"]
    # The one column alone: a row is read with all columns that there are, and images of others would be decoded.
    table = table.select_columns([images[0]]).cast_column(images[0], datasets.Image(decode=False))
    return Split(
        [Item(table, images[0], i) for i in range(len(table))],
        labels,
        classes,
        [f"{images[0]} {i}" for i in range(len(table))],
        remarks=remarks,
    )


def _class_names(kind: Any) -> list[str] | None:
    """The names of a column of class labels; None of any other."""
    return list(kind.names) if hasattr(kind, "names") else None


def _is_no_label(value: int | str | None) -> bool:
    return value in (None, "") or (isinstance(value, int) and value < 0)


def _encode_labels(
    values: Any, column: str, names: list[str] | None, trained: list[str] | None
) -> tuple[list[int], list[str]]:
    """(labels, classes) of a column of class labels, whole numbers or text. Empty or below zero: no label (-1)."""
    values = list(values)
    if names is not None:
        return [-1 if value is None else int(value) for value in values], names
    if not all(value is None or isinstance(value, int | str) for value in values):
        strange = next(value for value in values if not isinstance(value, int | str | None))
        raise DatasetError(
            f"the column {column} holds {type(strange).__name__}, not whole numbers or text; name another one with "
            f"--label-column"
        )
    texts = [None if _is_no_label(value) else str(value).strip() for value in values]
    found = sorted({text for text in texts if text is not None}, key=natural_order)
    classes = found if trained is None else trained
    strange = [text for text in found if text not in classes]
    if strange:
        raise DatasetError(
            f"the column {column} has classes that the training split does not: {', '.join(strange[:5])}."
        )
    number: Mapping[str, int] = {text: label for label, text in enumerate(classes)}
    return [-1 if text is None else number[text] for text in texts], classes
