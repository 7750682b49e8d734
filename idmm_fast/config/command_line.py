"""The command line: --config FILE and --section.key=value, and the help that lists every key."""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import yaml

from ..errors import ConfigError
from .load import Schema, Values, flatten_known, keys, laid_over, load_values, make_config, packaged_config


def parse(
    schema: Schema,
    argv: Sequence[str],
    doc: str | None,
    aliases: Mapping[str, str] | None = None,
    ignored: Iterable[str] = (),
    others: Mapping[str, Sequence[str]] | None = None,
    configs: str = "",
    prepare: Callable[[Values, Values], Values] = lambda values, typed: values,
) -> SimpleNamespace:
    """The configuration that a command line asks for: --config FILE, later files over earlier, and keys over files.

    Args:
        schema: what there is to set.
        argv: the arguments.
        doc: the head of the help, which --help prints before it exits.
        aliases: {short name: "section.key"}.
        ignored: keys of other scripts, which a file may hold.
        configs: the folder in rn_configs where the files that are named without a path are.
        prepare: called with all values {"section.key": value} before they are checked, and those that were typed
            among them; gives those to take.
        others: {script: its keys}; a file with a key that only that script has is refused by the script's name.

    Raises:
        ConfigError: for whatever can't be used.
    """
    known, aliases = keys(schema), aliases or {}
    files: Values = {}
    given = []
    for name, value in _arguments(argv):
        if value is None:
            print(_help(schema, doc or ""))
            sys.exit(0)
        if name in ("config", "config-file", "C"):
            files = laid_over(files, load_values(packaged_config(value, configs), known, ignored, others))
        else:
            _refuse_misspelt(name, ("config", *aliases), known)
            given.append(f"--{aliases.get(name, name)}={value}")
    params = {f"{section}.{key}": param for section, (_, group) in schema.items() for key, param in group.items()}
    readers = {key: param.checker.typed for key, param in params.items() if hasattr(param.checker, "typed")}
    typed = overrides(known, given, readers)
    return make_config(schema, prepare(laid_over(files, typed), typed))


def _refuse_misspelt(name: str, short: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError for an option that is almost one of the `short` ones, which are no keys."""
    if name in short or any(key == name or key.startswith(f"{name}.") for key in known):
        return
    if near := difflib.get_close_matches(name, short, 1, 0.75):
        raise ConfigError(f"command line: there is no key '{name}'. Did you mean --{near[0]}? (--help lists all keys)")


def overrides(
    known: Sequence[str], argv: Sequence[str], readers: Mapping[str, Callable[[str], Any]] | None = None
) -> Values:
    """The values of arguments --section.key=value.

    Args:
        known: the keys there are.
        argv: the arguments.
        readers: {key: what reads a value as it is typed}; values of the other keys are read as YAML.

    Raises:
        ConfigError: for whatever can't be used.
    """
    found: Values = {}
    for name, value in _arguments(argv):
        read = (readers or {}).get(name, _parse_value)
        given = None if value is None else read(value)
        found |= flatten_known({name: given}, known, "command line")
    return found


def _arguments(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of every `--name=value` and `--name value`, as text; ("help", None) for -h and --help."""
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
            if not args or args[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value")
            value = args.pop(0)
        yield name, value


def _parse_value(text: str) -> Any:
    """A value of the command line, as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _help(schema: Schema, doc: str) -> str:
    """What --help prints."""
    lines = [
        doc.strip(),
        "",
        "  --config FILE (also --config-file)   a YAML file of the keys below, or the name of one in rn_configs/;",
        "                                       of several files, later ones win",
        "",
    ]
    for section, (description, params) in schema.items():
        lines.append(f"{section}: {description}")
        for key, param in params.items():
            lines.append(f"  --{section}.{key}={param.checker.help()}")
            lines.append(
                f"        {param.desc} ({'required' if param.required else f'default {_as_typed(param.default)}'})"
            )
        lines.append("")
    return "\n".join(lines)


def _as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", "") if isinstance(value, list | dict) else str(value)
