"""A dataset of Hugging Face's `datasets` (pip install datasets): --name REPOSITORY, or a folder made by save_to_disk.

The column of images and that of labels are found by their types. Source: the datasets package.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .split import DatasetError, Split

OPTIONS = ("name",)
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}


@dataclass(frozen=True)
class Item:
    """An image of a table that is on disk: its bytes are read when they are asked for."""

    table: Any
    column: str
    row: int

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        image = self.table[self.row][self.column]
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def __str__(self) -> str:
        return f"row {self.row} of {self.table.info.dataset_name or 'the dataset'}"


def load(root: Path | None, name: str | None) -> dict[str, Split]:
    """The splits of a dataset.

    Args:
        root: Not used.
        name: A repository, or a folder made by save_to_disk.

    Returns:
        {"train": Split, "test": Split}, or one of them.

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
    result = {}
    for split, aliases in SPLITS.items():
        table = next((parts[a] for a in aliases if a in parts), None)
        if table is not None:
            result[split] = _split(table, datasets)
    if not result:
        raise DatasetError(f"'{name}' has the splits {', '.join(parts)}, none of which is a train or test split.")
    return result


def _split(table: Any, datasets: ModuleType) -> Split:
    """The images and labels of a table of the package `datasets`."""
    images = [c for c, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise DatasetError(f"the dataset has no column of images (columns: {', '.join(table.features)}).")
    named = [c for c, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    table = table.cast_column(images[0], datasets.Image(decode=False))
    if named:
        labels, classes = list(table[named[0]]), table.features[named[0]].names
    else:
        labels, classes = [0] * len(table), ["all"]
    return Split(
        [Item(table, images[0], i) for i in range(len(table))],
        labels,
        classes,
        [f"{images[0]} {i}" for i in range(len(table))],
    )
