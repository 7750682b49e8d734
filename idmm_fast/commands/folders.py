"""A folder of images in place of a .beton file: it is converted once, and kept."""

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from ..config.load import Values
from ..convert import STAND_INS, convert


def betons_of_folder(
    check: Callable[[Values], object],
    values: dict[str, Any],
    typed: Container[str] = (),
    test_share: float = 0.0,
    splits: Container[str] = ("train", "test"),
) -> dict[str, Any]:
    """Values of a configuration, with .beton files in place of a folder.

    Args:
        check: called with all values before a conversion, which may take long; raises ConfigError.
        values: {"section.key": value}; where data.train is a folder, its splits take the place of keys that are not
            given.
        typed: the keys that were typed on the command line. Where data.train is one of them, a file's data.test and
            data.val are of other images, and do not count.
        test_share: of each class, held out where the folder has no test split and data.test is not given.

    Raises:
        ConfigError: a value can't be used, or a file is not there.
        DatasetError, WriteError: the folder can't be converted; the message says why.
    """
    data = values.get("data.train")
    if not isinstance(data, str) or not Path(data).is_dir():
        return values
    if "data.train" in typed:
        others = [key for key in ("data.test", "data.val") if key not in typed]
        values = {key: value for key, value in values.items() if key not in others}

    def with_betons(betons: Mapping[str, Path]) -> dict[str, Any]:
        found = {f"data.{split}": str(path) for split, path in betons.items() if split in splits}
        given = {key: value for key, value in values.items() if value is not None or key not in found}
        return found | given | {"data.train": found["data.train"]}

    check(with_betons(STAND_INS))
    return with_betons(convert(data, 0.0 if values.get("data.test") else test_share))
