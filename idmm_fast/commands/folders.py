"""A folder of images in place of a .beton file: it is converted once, and kept."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from ..convert import convert


def betons_of_folder(
    values: dict[str, Any],
    typed: Container[str] = (),
    test_share: float = 0.0,
    splits: Container[str] = ("train", "test"),
) -> dict[str, Any]:
    """Values of a configuration, with .beton files in place of a folder.

    Args:
        values: {"section.key": value}; where data.train is a folder, its splits take the place of keys that are not
            given.
        typed: the keys that were typed on the command line. Where data.train is one of them, a file's data.test and
            data.val are of other images, and do not count.
        test_share: of each class, held out where the folder has no test split and data.test is not given.

    Raises:
        DatasetError, WriteError: the folder can't be converted; the message says why.
    """
    data = values.get("data.train")
    if not isinstance(data, str) or not Path(data).is_dir():
        return values
    if "data.train" in typed:
        others = [key for key in ("data.test", "data.val") if key not in typed]
        values = {key: value for key, value in values.items() if key not in others}
    test = values.get("data.test")
    betons = convert(data, 0.0 if test else test_share)
    found = {f"data.{split}": str(path) for split, path in betons.items() if split in splits}
    given = {key: value for key, value in values.items() if value is not None or key not in found}
    return found | given | {"data.train": found["data.train"]}
