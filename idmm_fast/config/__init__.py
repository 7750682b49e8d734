"""Configurations: YAML files and command lines, checked against the schemas here. Nothing here imports torch."""

from ..errors import ConfigError
from .augment import Augment
from .command_line import overrides, parse
from .load import (
    BY_NAME,
    as_dict,
    check_files,
    find_run_config,
    flatten,
    is_there,
    keys,
    laid_over,
    load_config,
    load_yaml,
    make_config,
    model_of,
    packaged_config,
    read_run_config,
    replace,
)

__all__ = [
    "BY_NAME",
    "Augment",
    "ConfigError",
    "as_dict",
    "check_files",
    "find_run_config",
    "flatten",
    "is_there",
    "keys",
    "laid_over",
    "load_config",
    "load_yaml",
    "make_config",
    "model_of",
    "overrides",
    "packaged_config",
    "parse",
    "read_run_config",
    "replace",
]
