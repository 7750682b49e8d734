"""Configurations: fastargs' sections and parameters, with what fastargs lacks.

fastargs drops unknown keys without a word, reads the string "false" as true and 1.5 as the integer 1. Here an unknown
key is an error that names the nearest known one, every value has a type and bounds, and a bad value says what was wanted.
"""

import difflib
import sys
from pathlib import Path
from types import SimpleNamespace

import yaml
from fastargs import Section
from fastargs.config import Config
from fastargs.validation import Checker


class ConfigError(Exception):
    """A configuration that can't be used. The message names the key, the value and what is wanted."""


class Int(Checker):
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


class Float(Checker):
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


class Bool(Checker):
    def check(self, value):
        if not isinstance(value, bool):
            raise ValueError
        return value

    def help(self):
        return "true or false"


class Choice(Checker):
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


class Str(Checker):
    def check(self, value):
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError
        return str(value)

    def help(self):
        return "text"


class Range(Checker):
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
        if not isinstance(value, list) or not all(
            isinstance(stage, dict) and all("." in str(key) for key in stage) for stage in value
        ):
            raise ValueError
        return value

    def help(self):
        return "a list of stages like [{training.epochs: 800}, {model.image_size: 448}]"


class CropGroups(Checker):
    """Groups of views: [{count: 2, scale: [0.14, 1.0]}, ...]."""

    def check(self, value):
        whole, pair = Int(1, 64), Range()
        result = []
        for group in value:
            if not set(group) <= {"count", "scale", "size"} or not {"count", "scale"} <= set(group):
                raise ValueError
            entry = {"count": whole.check(group["count"]), "scale": pair.check(group["scale"])}
            if "size" in group:
                entry["size"] = Int(8, 4096).check(group["size"])
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
    for path, value in list(flat.items()):
        if value is None and any(key.startswith(f"{path}.") for key in known):  # a section with nothing in it
            del flat[path]
        elif path not in known:
            raise ConfigError(f"{where}: there is no key '{path}'. {_nearest(path, known)}(--help lists all keys)")
    return flat


def _nearest(path, known):
    """Did you mean ...?, if there is a key whose own name is alike, of whatever section."""

    def alike(key):
        return tuple(
            difflib.SequenceMatcher(None, a, b).ratio()
            for a, b in ((path.rpartition(".")[2], key.rpartition(".")[2]), (path, key))
        )

    near = max(known, key=alike)
    return f"Did you mean '{near}'? " if alike(near)[0] >= 0.7 else ""


def _read(path, known, ignored=(), others=None, included_by=()):
    """{"section.key": value} of a file, over those of the file that its key `include` names, from its own folder."""
    if not Path(path).exists():
        by = f" (included by {included_by[-1]})" if included_by else ""
        raise ConfigError(f"{path} does not exist{by}; the configurations that come along are in rn_configs/")
    if str(path) in included_by:
        raise ConfigError(f"{path} includes itself, by way of {included_by[-1]}")
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections of keys, like `training: {{epochs: 10}}`")
    base = tree.pop("include", None)
    others = others or {}
    flat = _flatten(tree, [*known, *ignored, *(key for theirs in others.values() for key in theirs)], str(path))
    for script, theirs in others.items():
        if strange := [key for key in flat if key in theirs and key not in known and key not in ignored]:
            raise ConfigError(
                f"{[*included_by, path][0]} is a configuration of {script}, which has the key {strange[0]}; this script has not"
            )
    below = _read(Path(path).parent / str(base), known, ignored, others, (*included_by, str(path))) if base else {}
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


def read(schema, path, ignored=()):
    """{"section.key": value} of a YAML file over those it includes, unchecked but for the names. ignored: keys of other scripts, which it may hold. Raises
    ConfigError."""
    return _read(path, keys(schema), ignored)


def flatten(schema, tree, where):
    """{"section.key": value} of nested or dotted sections. where: what a message calls the place. Raises ConfigError for a key that `schema` does not have."""
    return _flatten(tree or {}, keys(schema), where)


def _arguments(argv):
    """(name, value) of every `--name=value` and `--name value`, as text; ("help", None) for -h and --help. Raises ConfigError."""
    args = list(argv)
    while args:
        arg = args.pop(0)
        if arg in ("-h", "--help"):
            yield "help", None
            continue
        if not arg.startswith("-"):
            raise ConfigError(f"'{arg}' is not understood; keys are given as --section.key=value")
        name, eq, value = arg.lstrip("-").partition("=")
        if not eq:
            if not args:
                raise ConfigError(f"--{name} needs a value")
            value = args.pop(0)
        yield name, value


def overrides(known, argv):
    """{"section.key": value} of the arguments --section.key=value, of which `known` are the keys. Raises ConfigError."""
    found = {}
    for name, value in _arguments(argv):
        found |= _flatten({name: _parse_value(value)}, known, "command line")
    return found


def parse(schema, argv, doc, aliases=None, ignored=(), others=None):
    """Read a configuration from the command line `argv`: --config FILE and --section.key=value.

    schema: {section: (description, {key: fastargs.Param})}. aliases: {short name: "section.key"}. ignored: keys of other
    scripts, which a file may hold. others: {script: its keys}, whose files are refused by the script's name. Returns nested namespaces,
    cfg.section.key. Prints help and exits on --help; raises ConfigError.
    """
    known, aliases = keys(schema), aliases or {}
    files, given = {}, []
    for name, value in _arguments(argv):
        if name == "help" and value is None:
            print(_help(schema, doc))
            sys.exit(0)
        if name in ("config", "config-file", "C"):
            files |= _read(value, known, ignored, others)
        else:
            given.append(f"--{aliases.get(name, name)}={value}")
    return build(schema, files | overrides(known, given))


def build(schema, values):
    """Check `values` ({"section.key": value}) against `schema` and fill in the defaults. Returns nested namespaces."""
    config = Config()
    for section, (description, params) in schema.items():
        Section(section, description, config_descriptor=config).params(**params)
    unknown = set(values) - {".".join(path) for path in config.entries}
    if unknown:
        _flatten(values, [".".join(path) for path in config.entries], "configuration")
    optional = [key for key, param in config.entries.items() if param.default is None and not param.required]
    config.content = {}
    for path, value in values.items():
        key = tuple(path.split("."))
        if value is None or (key in optional and isinstance(value, str) and value.lower() in ("none", "null")):
            if key not in optional and not config.entries[key].required:
                raise ConfigError(
                    f"{path}: none is not {config.entries[key].checker.help()} ({config.entries[key].desc})"
                )
        else:
            config.content[key] = value
    errors = config.validate(mode="errordict")
    for path in errors:
        key, param = ".".join(path), config.entries[path]
        if path not in config.content:
            raise ConfigError(f"{key} is required: {param.desc}")
        raise ConfigError(f"{key}: {config.content[path]!r} is not {param.checker.help()} ({param.desc})")
    return SimpleNamespace(
        **{
            section: SimpleNamespace(**{key: config[(section, key)] for key in params})
            for section, (_, params) in schema.items()
        }
    )


def changed(schema, cfg, changes):
    """The configuration `cfg` of `schema` with other values for the keys of `changes` ({"section.key": value})."""
    values = {f"{section}.{key}": value for section, keys in as_dict(cfg).items() for key, value in keys.items()}
    return build(schema, values | changes)


def as_dict(cfg):
    """Nested namespaces back to plain nested dicts, for YAML."""
    return {section: dict(vars(keys)) for section, keys in vars(cfg).items()}


def find_run_config(path):
    """The config.yaml of the run that `path`, a run folder or a file in it, belongs to; None if there is none."""
    path = Path(path)
    folders = (
        path,
        path.parent,
        path.parent.parent,
        path.parent.parent.parent,
    )  # the last for RUN/checkpoints/aside_1/*.pt
    return next((f / "config.yaml" for f in folders if (f / "config.yaml").is_file()), None)
