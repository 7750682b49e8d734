"""Configurations: fastargs' sections and parameters, with what fastargs lacks.

fastargs drops unknown keys without a word, reads the string "false" as true and 1.5 as the integer 1. Here an unknown
key is an error that names the nearest known one, every value has a type and bounds, and a bad value says what was wanted.
"""

import difflib
import sys
from pathlib import Path
from types import SimpleNamespace

import yaml
from fastargs import Param, Section
from fastargs.config import Config
from fastargs.validation import Checker


class ConfigError(Exception):
    """A configuration that can't be used. The message names the key, the value and what is wanted."""


class Whole(Checker):
    def __init__(self, low, high=2**63 - 1):
        self.low, self.high = low, high

    def check(self, value):
        if isinstance(value, bool) or int(value) != float(value) or not self.low <= int(value) <= self.high:
            raise ValueError
        return int(value)

    def help(self):
        return (
            f"a whole number of at least {self.low}"
            if self.high > 2**60
            else f"a whole number in {self.low}..{self.high}"
        )


class Number(Checker):
    def __init__(self, low, high=float("inf")):
        self.low, self.high = low, high

    def check(self, value):
        if isinstance(value, bool) or not self.low <= float(value) <= self.high:
            raise ValueError
        return float(value)

    def help(self):
        return (
            f"a number of at least {self.low}" if self.high == float("inf") else f"a number in {self.low}..{self.high}"
        )


class Flag(Checker):
    def check(self, value):
        if not isinstance(value, bool):
            raise ValueError
        return value

    def help(self):
        return "true or false"


class OneOf(Checker):
    def __init__(self, *choices):
        self.choices = choices

    def check(self, value):
        if value not in self.choices or isinstance(value, bool) != isinstance(
            self.choices[self.choices.index(value)], bool
        ):
            raise ValueError
        return value

    def help(self):
        return "one of " + ", ".join(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices)


class Text(Checker):
    def check(self, value):
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError
        return str(value)

    def help(self):
        return "text"


class Pair(Checker):
    def check(self, value):
        low, high = value
        if not float(low) <= float(high):
            raise ValueError
        return [float(low), float(high)]

    def help(self):
        return "a range [low, high]"


class Mapping(Checker):
    def check(self, value):
        if not isinstance(value, dict):
            raise ValueError
        return value

    def help(self):
        return "a mapping {name: value}"


class Stages(Checker):
    """Changes to a configuration, one set after another: [{training.epochs: 800}, {model.image_size: 448, ...}]."""

    def check(self, value):
        if not isinstance(value, list) or not all(isinstance(stage, dict) and all("." in str(key) for key in stage) for stage in value):
            raise ValueError
        return value

    def help(self):
        return "a list of stages like [{training.epochs: 800}, {model.image_size: 448}]"


class Groups(Checker):
    """Groups of views: [{count: 2, scale: [0.14, 1.0]}, ...]."""

    def check(self, value):
        whole, pair = Whole(1, 64), Pair()
        result = []
        for group in value:
            if not set(group) <= {"count", "scale", "size"} or not {"count", "scale"} <= set(group):
                raise ValueError
            entry = {"count": whole.check(group["count"]), "scale": pair.check(group["scale"])}
            if "size" in group:
                entry["size"] = Whole(8, 4096).check(group["size"])
            result.append(entry)
        if not result:
            raise ValueError
        return result

    def help(self):
        return "a list of groups like [{count: 2, scale: [0.14, 1.0]}]"


def _flatten(tree, known, where, prefix=""):
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in known or not isinstance(value, dict):
            flat[path] = value
        else:
            flat |= _flatten(value, known, where, f"{path}.")
    for path in flat:
        if path not in known:
            near = difflib.get_close_matches(path, known, 1, 0.0)
            raise ConfigError(f"{where}: there is no key '{path}'. Did you mean '{near[0]}'? (--help lists all keys)")
    return flat


def _read(path, known, ignored=(), included_by=()):
    """{"section.key": value} of a file, over those of the file that its key `include` names, from its own folder."""
    if not Path(path).exists():
        by = f" (included by {included_by[-1]})" if included_by else ""
        raise ConfigError(f"{path} does not exist{by}; the configurations that come along are in rn_configs/")
    if str(path) in included_by:
        raise ConfigError(f"{path} includes itself, by way of {included_by[-1]}")
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections of keys, like `training: {{epochs: 10}}`")
    base = tree.pop("include", None)
    flat = _flatten(tree, [*known, *ignored], str(path))
    below = _read(Path(path).parent / str(base), known, ignored, (*included_by, str(path))) if base else {}
    return below | {key: value for key, value in flat.items() if key in known}


def _parse_value(text):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _help(schema, doc):
    lines = [
        doc.strip(),
        "",
        "  --config FILE (also --config-file)   a YAML file of the keys below; may be given several times, later ones win",
        "",
    ]
    for section, (description, params) in schema.items():
        lines.append(f"{section}: {description}")
        for key, param in params.items():
            default = "required" if param.required else f"default {'none' if param.default is None else param.default}"
            lines.append(f"  --{section}.{key}={param.checker.help()}")
            lines.append(f"        {param.desc} ({default})")
        lines.append("")
    return "\n".join(lines)


def keys(schema):
    """All "section.key" of a schema."""
    return [f"{section}.{key}" for section, (_, params) in schema.items() for key in params]


def read(schema, path):
    """{"section.key": value} of a YAML file over those it includes, unchecked but for the names. Raises ConfigError."""
    return _read(path, keys(schema))


def flatten(schema, tree, where):
    """{"section.key": value} of nested or dotted sections. where: what a message calls the place. Raises ConfigError for a key that `schema` does not have."""
    return _flatten(tree or {}, keys(schema), where)


def parse(schema, argv, doc, aliases=None, ignored=()):
    """Read a configuration from the command line `argv`: --config FILE and --section.key=value.

    schema: {section: (description, {key: fastargs.Param})}. aliases: {short name: "section.key"}. ignored: keys of other
    scripts, which a file may hold. Returns nested namespaces, cfg.section.key. Prints help and exits on --help; raises
    ConfigError.
    """
    known, aliases = keys(schema), aliases or {}
    files, overrides = {}, {}
    args = list(argv)
    while args:
        arg = args.pop(0)
        if arg in ("-h", "--help"):
            print(_help(schema, doc))
            sys.exit(0)
        if not arg.startswith("-"):
            raise ConfigError(f"'{arg}' is not understood; keys are given as --section.key=value")
        name, eq, value = arg.lstrip("-").partition("=")
        if not eq:
            if not args:
                raise ConfigError(f"--{name} needs a value")
            value = args.pop(0)
        if name in ("config", "config-file", "C"):
            files |= _read(value, known, ignored)
        else:
            overrides |= _flatten({aliases.get(name, name): _parse_value(value)}, known, "command line")
    return build(schema, files | overrides)


def build(schema, values):
    """Check `values` ({"section.key": value}) against `schema` and fill in the defaults. Returns nested namespaces."""
    config = Config()
    for section, (description, params) in schema.items():
        Section(section, description, config_descriptor=config).params(**params)
    unknown = set(values) - {".".join(path) for path in config.entries}
    if unknown:
        _flatten(values, [".".join(path) for path in config.entries], "configuration")
    config.content = {tuple(path.split(".")): value for path, value in values.items() if value is not None}
    errors = config.validate(mode="errordict")
    for path in errors:
        key, param = ".".join(path), config.entries[path]
        if path not in config.content:
            raise ConfigError(f"{key} is required: {param.desc}")
        raise ConfigError(f"{key}: {config.content[path]!r} is not {param.checker.help()} ({param.desc})")
    return SimpleNamespace(**{
        section: SimpleNamespace(**{key: config[(section, key)] for key in params}) for section, (_, params) in schema.items()
    })  # fmt: skip


def changed(schema, cfg, changes):
    """The configuration `cfg` of `schema` with other values for the keys of `changes` ({"section.key": value})."""
    values = {f"{section}.{key}": value for section, keys in as_dict(cfg).items() for key, value in keys.items()}
    return build(schema, values | changes)


def as_dict(cfg):
    """Nested namespaces back to plain nested dicts, for YAML."""
    return {section: dict(vars(keys)) for section, keys in vars(cfg).items()}


__all__ = [
    "ConfigError",
    "Flag",
    "Groups",
    "Mapping",
    "Number",
    "OneOf",
    "Pair",
    "Param",
    "Stages",
    "Text",
    "Whole",
    "as_dict",
    "build",
    "changed",
    "flatten",
    "keys",
    "parse",
    "read",
]
