"""Configurations: typed, bounded, and no key is dropped in silence."""

import pytest
import yaml
from helpers import ROOT, run_script

from idmm_fast.config import ConfigError, as_dict, build, parse
from idmm_fast.train import finetuning as finetune
from idmm_fast.train import pretraining as pretrain

CONFIGS = [
    p for p in sorted((ROOT / "rn_configs").glob("*.yaml")) if not p.stem.startswith("compare")
]  # test_compare.py has these
NEEDED = ["--data.train=x.beton", "--model.name=deit_tiny_patch16_224", "--logging.run_dir=runs/x"]


def read(*args):
    return parse(pretrain.SCHEMA, [*NEEDED, *args], "doc")


def test_defaults_are_the_papers():
    cfg = read()
    assert (cfg.training.epochs, cfg.training.batch_size, cfg.training.lr, cfg.training.weight_decay) == (
        800,
        256,
        5e-4,
        1e-3,
    )
    assert (cfg.training.label_smoothing, cfg.training.warmup_epochs, cfg.cutmix.alpha, cfg.model.drop_path) == (
        0.1,
        2,
        0.5,
        0.1,
    )
    assert cfg.model.image_size == 112
    assert cfg.crops.groups == [{"count": 2, "scale": [0.14, 1.0]}, {"count": 4, "scale": [0.05, 0.4]}]
    assert vars(cfg.augment) == {
        "flip_prob": 0.5,
        "jitter_prob": 0.8,
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale_prob": 0.2,
        "blur_prob": 0.5,
        "blur_sigma": [0.1, 2.0],
        "randaugment": 0,
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads(path):
    schema = finetune.SCHEMA if path.stem.endswith("finetune") else pretrain.SCHEMA
    cfg = parse(schema, ["--config", str(path)], "doc")
    assert build(schema, {f"{s}.{k}": v for s, keys in as_dict(cfg).items() for k, v in keys.items()}) == cfg


OPTIONAL = ["training.weight_decay_end", "data.test"]


@pytest.mark.parametrize("key", OPTIONAL)
def test_none_is_what_the_help_calls_none(tmp_path, key, capsys):
    with pytest.raises(SystemExit):
        read("--help")
    assert "(default none)" in capsys.readouterr().out.split(f"--{key}=")[1].split("\n")[1]
    section, name = key.split(".")
    path = tmp_path / "c.yaml"
    for word in ("none", "None", "NONE", "null", "~", ""):
        path.write_text(f"{section}:\n  {name}: {word}\n")
        for args in ((f"--{key}=0.5", f"--{key}={word}"), ("--config", str(path))):
            assert getattr(getattr(read(*args), section), name) is None, args


@pytest.mark.parametrize("value", ["none", "null"])
def test_none_is_no_value_for_what_has_another_default(value):
    with pytest.raises(ConfigError, match=r"training\.lr: (none|'none') is not a number of at least 0"):
        read(f"--training.lr={value}")
    assert read("--logging.run_dir=none").logging.run_dir == "none"  # a required text is taken as it is


def test_a_name_is_suggested_only_where_one_is_near():
    for typed, meant in {
        "training.epoch": "training.epochs",
        "lr": "training.lr",
        "model.batch_size": "training.batch_size",
        "trainig.sed": "training.seed",
        "batchsize": "training.batch_size",
        "wieght_decay": "training.weight_decay",
    }.items():
        with pytest.raises(ConfigError, match=rf"Did you mean '{meant}'\?"):
            read(f"--{typed}=1")
    for typed in ("training.colour", "frobnicate", "model.xyzzy"):
        with pytest.raises(ConfigError, match=rf"there is no key '{typed}'\. \(--help lists all keys\)"):
            read(f"--{typed}=1")


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name == "rn_configs"], ids=lambda p: p.stem)
def test_a_configuration_of_the_other_script_is_called_that(path):
    script, other = (
        ("finetune.py", "train_idmm.py") if path.stem.endswith("finetune") else ("train_idmm.py", "finetune.py")
    )
    refused = run_script(other, "--config", path)
    assert refused.returncode == 1
    assert f"error: {path} is a configuration of {script}" in refused.stderr


def test_a_file_that_is_no_utf8_is_told_so(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"logging:\n  run_dir: \xfcber\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML: .*utf-8"):
        read("--config", str(tmp_path / "c.yaml"))


def test_a_section_with_nothing_in_it_is_none(tmp_path):
    (tmp_path / "c.yaml").write_text("training:\nmodel:\n  image_size: 64\n")
    assert read("--config", str(tmp_path / "c.yaml")).model.image_size == 64


@pytest.mark.parametrize("form", ["--config", "--config-file", "-C"])
def test_file_then_command_line(tmp_path, form):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"training": {"epochs": 3, "lr": 0.1}, "model": {"options": {"depth": 2}}}))
    cfg = read(form, str(path), "--training.epochs", "5")
    assert cfg.training.epochs == 5
    assert cfg.training.lr == 0.1
    assert cfg.model.options == {"depth": 2}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--training.epoch=3"], "training.epochs"),
        (["--trainning.lr=3"], "training.lr"),
        (["--training.epochs=1.5"], r"training.epochs: 1.5 is not a whole number"),
        (["--training.epochs=0"], "whole number of at least 1"),
        (["--training.lr=-1"], "number of at least 0"),
        (["--training.lr=fast"], "'fast' is not a number"),
        (["--training.compile=maybe"], "one of auto, true, false"),
        (["--training.compile=1"], "one of auto, true, false"),
        (["--augment.flip_prob=2"], "number in 0..1|number in 0"),
        (["--crops.groups=[{count: 2}]"], "list of groups"),
        (["--config=/nowhere.yaml"], "does not exist"),
        (["nonsense"], "not understood"),
        (["--training.lr"], "needs a value"),
    ],
)
def test_errors_name_the_key_and_what_is_wanted(args, says):
    with pytest.raises(ConfigError, match=says):
        read(*args)


def test_unknown_key_in_a_file_names_file_and_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  batchsize: 3\n")
    with pytest.raises(ConfigError, match=r"c\.yaml.*'training\.batchsize'.*'training\.batch_size'"):
        read("--config", str(path))


def test_a_file_goes_over_the_one_that_it_includes(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text("include: deeper.yaml\ntraining:\n  lr: 3.0e-4\n  epochs: 7\n")
    (tmp_path / "below" / "deeper.yaml").write_text("training:\n  lr: 1.0\n  seed: 5\n")
    path = tmp_path / "c.yaml"
    path.write_text("include: below/base.yaml\ntraining:\n  epochs: 9\n")
    cfg = read("--config", str(path), "--training.seed=6")
    assert (cfg.training.lr, cfg.training.epochs, cfg.training.seed) == (3e-4, 9, 6)
    path.write_text("include: nobody.yaml\n")
    with pytest.raises(ConfigError, match=r"nobody\.yaml does not exist \(included by .*c\.yaml\)"):
        read("--config", str(path))
    path.write_text("include: c.yaml\n")
    with pytest.raises(ConfigError, match="includes itself"):
        read("--config", str(path))


def test_missing_required_key():
    with pytest.raises(ConfigError, match=r"data\.train is required"):
        parse(pretrain.SCHEMA, ["--model.name=x", "--logging.run_dir=y"], "doc")


def test_help_tells_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for section, (_, params) in pretrain.SCHEMA.items():
        for key in params:
            assert f"--{section}.{key}=" in shown
