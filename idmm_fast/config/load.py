"""Configurations: fastargs' sections and parameters, with what fastargs lacks.

fastargs drops unknown keys without a word. Here an unknown key is an error that names the nearest known one, every
value has a type and bounds, and a bad value says what is wanted. A schema is {section: (description, {key:
fastargs.Param})}; values are {"section.key": value} until `make_config` turns them into nested namespaces,
cfg.section.key.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from fastargs import Section
from fastargs.config import Config

from ..errors import ConfigError
from .sections import Section as SchemaSection
from .types import Derived

BY_NAME = "timm:"  # before the name of weights that timm's own loader gets
PACKAGED = Path(__file__).parent.parent / "rn_configs"  # in a checkout a link to the folder at the root

Schema = dict[str, SchemaSection]
Values = dict[str, Any]


def keys(schema: Schema) -> list[str]:
    """All "section.key" of a schema."""
    return [f"{section}.{key}" for section, (_, params) in schema.items() for key in params]


def make_config(schema: Schema, values: Mapping[str, Any]) -> SimpleNamespace:
    """Check values and fill in the defaults.

    Args:
        schema: what there is to set.
        values: {"section.key": value}.

    Returns:
        Nested namespaces, cfg.section.key.

    Raises:
        ConfigError: for an unknown key, a value that does not fit, or a required key that is missing.
    """
    config = Config()
    for section, (description, params) in schema.items():
        Section(section, description, config_descriptor=config).params(**params)
    known = keys(schema)
    _refuse_unknown(values, known, "configuration")
    config.content = {}
    for path, value in values.items():
        key = tuple(path.split("."))
        param = config.entries[key]
        optional = param.default is None and not param.required
        if value is None or (optional and isinstance(value, str) and value.lower() in ("none", "null")):
            if not optional and not param.required:
                raise ConfigError(f"{path}: none is not {param.checker.help()} ({param.desc})")
        else:
            config.content[key] = value
    for path in config.validate(mode="errordict"):
        name, param = ".".join(path), config.entries[path]
        if path not in config.content:
            raise ConfigError(f"{name} is required: {param.desc}")
        raise ConfigError(f"{name}: {config.content[path]!r} is not {param.checker.help()} ({param.desc})")
    cfg = SimpleNamespace(
        **{
            section: SimpleNamespace(**{key: config[(section, key)] for key in params})
            for section, (_, params) in schema.items()
        }
    )
    for section, (_, params) in schema.items():
        group = vars(getattr(cfg, section))
        group |= {
            k: p.checker.derive(cfg) for k, p in params.items() if isinstance(p.checker, Derived) and group[k] == "auto"
        }
    return cfg


def replace(schema: Schema, cfg: SimpleNamespace, changes: Mapping[str, Any]) -> SimpleNamespace:
    """The configuration `cfg` of `schema` with other values for the keys of `changes` ({"section.key": value})."""
    values = {f"{section}.{key}": value for section, keys in as_dict(cfg).items() for key, value in keys.items()}
    return make_config(schema, values | dict(changes))


def as_dict(cfg: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """Nested namespaces back to plain nested dicts, for YAML."""
    return {section: dict(vars(keys)) for section, keys in vars(cfg).items()}


def laid_over(values: Values, later: Values) -> Values:
    """The values of `later` over `values`; epochs that are given later end the minutes that were given before."""
    by_epochs = "training.epochs" in later and values.get("training.minutes")
    return values | ({"training.minutes": 0.0} if by_epochs else {}) | later


def flatten(schema: Schema, tree: Mapping[str, Any] | None, where: str) -> Values:
    """{"section.key": value} of nested or dotted sections.

    Args:
        schema: what keys there are.
        tree: the sections, nested or dotted; None for none.
        where: what a message calls the place.

    Raises:
        ConfigError: for an unknown key.
    """
    return flatten_known(tree or {}, keys(schema), where)


def load_yaml(schema: Schema, path: str | Path, ignored: Iterable[str] = ()) -> Values:
    """The values of a YAML file over those of the files that it includes; only the names of the keys are checked.

    Args:
        schema: what keys there are.
        path: the file. Its key `include` names another file, or several of which later ones override earlier ones,
            relative to its own folder.
        ignored: keys of other programs, which the file may hold.

    Raises:
        ConfigError: for a file that is missing, not YAML, or includes itself, and for an unknown key.
    """
    return load_values(path, keys(schema), ignored)


def load_config(schema: Schema, path: str | Path, values: Mapping[str, Any], ignored: Iterable[str]) -> SimpleNamespace:
    """The configuration of a YAML file with other values laid over; of both, only the keys that `schema` has.

    Args:
        schema: what there is to set.
        path: the file.
        values: {"section.key": value}.
        ignored: keys of other programs, which the file may hold.

    Raises:
        ConfigError: for whatever can't be used.
    """
    known = set(keys(schema))
    later = {k: v for k, v in values.items() if k in known}
    return make_config(schema, laid_over(load_yaml(schema, path, ignored), later))


def check_files(cfg: SimpleNamespace) -> None:
    """Raise ConfigError if a file that the configuration names is not there, before anything slow is imported."""
    makes = "make it with: idmm-fast convert --ds NAME (see --help)."
    names = "name a run folder, a checkpoint in it, a .safetensors file, or timm's own weights: timm:NAME."
    needs_test = not hasattr(cfg, "online_eval") or cfg.online_eval.every  # pretraining may do without
    for section, key, advice in (
        ("model", "init", names),
        ("data", "train", makes),
        ("data", "test", makes),
        ("data", "val", makes),
    ):
        path = getattr(getattr(cfg, section), key, None) if needs_test or key != "test" else None
        if path is not None and not is_there(path):
            if key == "train" and Path(path).suffix != ".beton":
                raise ConfigError(f"data.train (--data): there is no folder or .beton file {path}")
            raise ConfigError(f"{section}.{key}: {path} does not exist; {advice}")
        if section == "data" and path is not None and Path(path).is_dir():
            raise ConfigError(
                f"data.{key}: {path} is a folder, and this takes a .beton file. Images of your own go to --data "
                f"FOLDER, those to test on into FOLDER/test/CLASS"
            )


def is_there(path: str) -> bool:
    """Whether a file or folder exists; weights that timm has by name (timm:NAME) are looked for later."""
    return path.startswith(BY_NAME) or Path(path).exists()


def model_of(init: Any) -> Values:
    """Name and options of the model that `model.init` is weights of, {"model.name": ...}, as far as it says so."""
    if not isinstance(init, str):
        return {}
    if init.startswith(BY_NAME):
        return {"model.name": init.removeprefix(BY_NAME).partition(".")[0]}
    model = read_run_config(init).get("model", {})
    return {f"model.{key}": model[key] for key in ("name", "options") if key in model}


def find_run_config(path: str | Path) -> Path | None:
    """The config.yaml of the run that `path`, a run folder or a file in it, belongs to; None if there is none."""
    if str(path).startswith(BY_NAME):
        return None
    path = Path(path)
    folders = (path, *list(path.parents)[:3])  # the last for RUN/checkpoints/aside_1/*.pt
    return next((f / "config.yaml" for f in folders if is_run_config(f / "config.yaml")), None)


def read_run_config(path: str | Path) -> dict[str, Any]:
    """What the config.yaml that `find_run_config` finds says; {} if there is none."""
    found = find_run_config(path)
    return yaml.safe_load(found.read_text(encoding="utf-8")) if found else {}


def is_run_config(path: Path) -> bool:
    """Whether a file is the configuration of a run, with all its keys: others are named config.yaml too."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    model, log = (tree.get(name) if isinstance(tree, dict) else None for name in ("model", "logging"))
    is_whole = isinstance(model, dict) and {"name", "image_size", "options"} <= model.keys()
    return is_whole and isinstance(log, dict) and "run_dir" in log


def packaged_config(name: str, folder: str = "") -> str:
    """The file of a configuration that comes along, where `name` is its name: "pets" is rn_configs/FOLDER/pets.yaml.

    Args:
        name: a file, which is returned as it is; or a name, perhaps as a path in the checkout: rn_configs/pets.yaml.
        folder: where in rn_configs, before rn_configs itself.
    """
    if Path(name).exists() and not Path(name).is_dir():  # a file, or a pipe
        return name
    own = name.removeprefix("rn_configs/")
    for below in dict.fromkeys((folder, "")):
        for found in (PACKAGED / below / own, PACKAGED / below / f"{own}.yaml"):
            if found.is_file():
                return str(found)
    return name


def load_values(
    path: str | Path,
    known: Sequence[str],
    ignored: Iterable[str] = (),
    others: Mapping[str, Sequence[str]] | None = None,
    included_by: tuple[str, ...] = (),
) -> Values:
    """See `load_yaml` and `parse`. included_by: the files that lead here, the outermost first."""
    others, ignored = others or {}, set(ignored)
    tree = _read_included(path, included_by)
    included = tree.pop("include", None) or []
    flat = flatten_known(tree, [*known, *ignored, *(key for theirs in others.values() for key in theirs)], str(path))
    for script, theirs in others.items():
        if strange := [key for key in flat if key in theirs and key not in known and key not in ignored]:
            raise ConfigError(
                f"{[*included_by, path][0]} is a configuration of {script}, "
                f"which has the key {strange[0]}; this command has not"
            )
    below: Values = {}
    for name in included if isinstance(included, list) else [included]:
        included_values = load_values(Path(path).parent / str(name), known, ignored, others, (*included_by, str(path)))
        below = laid_over(below, included_values)
    return laid_over(below, {key: value for key, value in flat.items() if key in known})


def _packaged_names() -> list[str]:
    """The names of the configurations that come along; those of finetune/ have the same."""
    names = (path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.yaml"))
    other = ("base/finetune", "compare/", "finetune/")
    return sorted(name for name in names if not name.startswith(other))


def _shown(folder: Path) -> str:
    """The folder as it is named from here, if it is below."""
    here = Path.cwd() / folder.name
    return f"{folder.name}/" if here.is_dir() and here.samefile(folder) else f"{folder}/"


def _read_included(path: str | Path, included_by: tuple[str, ...]) -> dict[str, Any]:
    """The content of a YAML file that `included_by` lead to."""
    is_folder = Path(path).is_dir()
    if is_folder or not Path(path).exists():
        what = "is a folder" if is_folder else "does not exist"
        by = f" (included by {included_by[-1]})" if included_by else ""
        names = _packaged_names()
        near = difflib.get_close_matches(str(path).removesuffix(".yaml"), names, 1, 0.7)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{path} {what}{by}; the configurations that come along are in {_shown(PACKAGED)}: "
            f"{', '.join(names)}.{meant}"
        )
    if Path(path).resolve() in {Path(each).resolve() for each in included_by}:
        raise ConfigError(f"{path} includes itself, by way of {included_by[-1]}")
    return read_tree(path)


def read_tree(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file that is there; ConfigError where it is no YAML, or no mapping."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections of keys, like `training: {{epochs: 10}}`")
    return tree


def flatten_known(tree: Mapping[str, Any], known: Sequence[str], where: str) -> Values:
    """See `flatten`; `known` are the keys there are."""

    def pairs(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            path = f"{prefix}{key}"
            if path in known or not isinstance(value, dict):
                yield path, value
            else:
                yield from pairs(value, f"{path}.")

    def is_empty_section(path: str, value: Any) -> bool:
        return value is None and any(key.startswith(f"{path}.") for key in known)

    flat = {path: value for path, value in pairs(tree, "") if not is_empty_section(path, value)}
    _refuse_unknown(flat, known, where)
    return flat


def _refuse_unknown(values: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise ConfigError for a key that is not known, with the one that may be meant."""
    for path in values:
        if path not in known:
            raise ConfigError(f"{where}: there is no key '{path}'. {nearest_key(path, known)}(--help lists all keys)")


def nearest_key(path: str, known: Sequence[str]) -> str:
    """Did you mean ...?, if there is a key whose own name is alike, of whatever section."""

    def likeness(key: str) -> tuple[float, float]:
        own, theirs = path.rpartition(".")[2], key.rpartition(".")[2]
        return (
            difflib.SequenceMatcher(None, own, theirs).ratio(),
            difflib.SequenceMatcher(None, path, key).ratio(),
        )

    near = max(known, key=likeness)
    return f"Did you mean '{near}'? " if likeness(near)[0] >= 0.7 else ""
