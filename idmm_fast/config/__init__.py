"""Configurations: YAML files and command lines, checked against the schemas in this folder. Nothing here imports torch."""

from fastargs import Param

from .load import (
    Bool,
    Choice,
    ConfigError,
    CropGroups,
    Float,
    Int,
    Mapping,
    Range,
    Stages,
    Str,
    as_dict,
    build,
    changed,
    flatten,
    keys,
    overrides,
    parse,
    read,
)

__all__ = [
    "Bool",
    "Choice",
    "ConfigError",
    "CropGroups",
    "Float",
    "Int",
    "Mapping",
    "Param",
    "Range",
    "Stages",
    "Str",
    "as_dict",
    "build",
    "changed",
    "flatten",
    "keys",
    "overrides",
    "parse",
    "read",
]
