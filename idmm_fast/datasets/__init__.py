"""The datasets, one file each. To add one, put a module here whose docstring's first line says what it is, with

def load(root: Path) -> dict[str, Split]      # "train", "test", ...; downloads what is missing, or says what to do
"""

import importlib
import pkgutil

from .split import DatasetError, Split

__all__ = ["DatasetError", "Split", "describe", "load", "names"]


def names():
    """The names of all datasets, sorted."""
    return sorted(
        m.name
        for m in pkgutil.iter_modules(__path__)
        if hasattr(importlib.import_module(f".{m.name}", __name__), "load")
    )


def _module(name):
    if name not in names():
        raise DatasetError(f"There is no dataset '{name}'. The names are: {', '.join(names())}.")
    return importlib.import_module(f".{name}", __name__)


def describe(name):
    """One line on what the dataset is."""
    return _module(name).__doc__.strip().splitlines()[0]


def load(name, root):
    """The splits of dataset `name`, whose raw files are, or are to be, under `root`. Raises DatasetError."""
    return _module(name).load(root)
