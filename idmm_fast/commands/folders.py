"""A folder of images in place of a .beton file: it is converted once, and kept."""

from pathlib import Path
from typing import Any

from ..convert import convert


def betons_of_folder(values: dict[str, Any], test_share: float = 0.0) -> dict[str, Any]:
    """Values of a configuration, with .beton files for data.train and data.test where data.train is a folder.

    Args:
        values: {"section.key": value}.
        test_share: of each class, held out where the folder has no test split and data.test is not given.

    Raises:
        DatasetError, WriteError: the folder can't be converted; the message says why.
    """
    data = values.get("data.train")
    if not isinstance(data, str) or not Path(data).is_dir():
        return values
    test = values.get("data.test")
    betons = convert(data, 0.0 if test else test_share)
    return values | {"data.train": str(betons["train"]), "data.test": test or _text(betons.get("test"))}


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
