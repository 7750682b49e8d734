"""Configurations: typed, bounded, and no key is dropped in silence."""

from pathlib import Path

import pytest
import yaml

from idmm_fast.config import ConfigError, as_dict, build, parse
from idmm_fast.train import finetune, pretrain

CONFIGS = [p for p in sorted((Path(__file__).parent.parent / "rn_configs").glob("*.yaml")) if not p.stem.startswith("compare")]  # test_compare.py has these
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
    assert (cfg.training.smoothing, cfg.training.warmup_epochs, cfg.cutmix.alpha, cfg.model.drop_path) == (
        0.1,
        2,
        0.5,
        0.1,
    )
    assert cfg.model.image_size == 112
    assert cfg.views.groups == [{"count": 2, "scale": [0.14, 1.0]}, {"count": 4, "scale": [0.05, 0.4]}]
    assert vars(cfg.augment) == {"flip": 0.5, "jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2,
                                 "gray": 0.2, "blur": 0.5, "sigma": [0.1, 2.0], "operations": 0}  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads(path):
    schema = finetune.SCHEMA if path.stem.endswith("finetune") else pretrain.SCHEMA
    cfg = parse(schema, ["--config", str(path)], "doc")
    assert build(schema, {f"{s}.{k}": v for s, keys in as_dict(cfg).items() for k, v in keys.items()}) == cfg


@pytest.mark.parametrize("form", ["--config", "--config-file", "-C"])
def test_file_then_command_line(tmp_path, form):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"training": {"epochs": 3, "lr": 0.1}, "model": {"options": {"depth": 2}}}))
    cfg = read(form, str(path), "--training.epochs", "5")
    assert cfg.training.epochs == 5
    assert cfg.training.lr == 0.1
    assert cfg.model.options == {"depth": 2}


@pytest.mark.parametrize(("args", "says"), [
    (["--training.epoch=3"], "training.epochs"),
    (["--trainning.lr=3"], "training.lr"),
    (["--training.epochs=1.5"], r"training.epochs: 1.5 is not a whole number"),
    (["--training.epochs=0"], "whole number of at least 1"),
    (["--training.lr=-1"], "number of at least 0"),
    (["--training.lr=fast"], "'fast' is not a number"),
    (["--training.compile=maybe"], "one of auto, true, false"),
    (["--training.compile=1"], "one of auto, true, false"),
    (["--augment.flip=2"], "number in 0..1|number in 0"),
    (["--views.groups=[{count: 2}]"], "list of groups"),
    (["--config=/nowhere.yaml"], "does not exist"),
    (["nonsense"], "not understood"),
    (["--training.lr"], "needs a value"),
])  # fmt: skip
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
