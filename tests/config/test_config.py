"""Configurations: typed, bounded, and no key is dropped in silence."""

from pathlib import Path

import pytest
import yaml

from idmm_fast.config import (
    ConfigError,
    check_files,
    evaluate,
    find_run_config,
    finetune,
    make_config,
    packaged_config,
    parse,
    pretrain,
    read_run_config,
)
from idmm_fast.config.augment import Augment

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
    assert cfg.augment.randaugment == 0
    assert {key: value for key, value in vars(cfg.augment).items() if value} == {  # any other is off
        "flip_prob": 0.5,
        "jitter_prob": 0.8,
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
        "grayscale_prob": 0.2,
        "blur_prob": 0.5,
        "blur_sigma": [0.1, 2.0],
    }


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
    assert read("--logging.run_dir=none").logging.run_dir == "none"  # a text with a default is taken as it is


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


def test_a_folder_does_not_hide_a_configuration_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert packaged_config("pets").endswith("rn_configs/pets.yaml")
    assert packaged_config("/dev/null") == "/dev/null"  # as pipes, no file


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
        (["--cutmix.alpha=inf"], "cutmix.alpha: inf is not a number of at least 0"),
        (["--augment.blur_sigma=[0.1, .inf]"], r"augment.blur_sigma: \[0.1, inf\] is not a range"),
        (["--training.compile=maybe"], "one of auto, true, false"),
        (["--training.compile=1"], "one of auto, true, false"),
        (["--augment.flip_prob=2"], "number in 0..1|number in 0"),
        (["--crops.groups=[{count: 2}]"], "list of groups"),
        (["--config=/nowhere.yaml"], "does not exist; the configurations .* base/pretrain, .* own, "),
        (["--config=/"], "/ is a folder; the configurations that come along"),
        (["--training.lr", "--training.epochs=3"], r"--training\.lr needs a value"),
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
    (tmp_path / "other.yaml").write_text("training:\n  epochs: 8\n  batch_size: 12\n")
    path.write_text("include: [below/base.yaml, other.yaml]\ntraining:\n  batch_size: 13\n")
    cfg = read("--config", str(path))
    assert (cfg.training.lr, cfg.training.epochs, cfg.training.seed, cfg.training.batch_size) == (3e-4, 8, 5, 13)
    path.write_text("include: nobody.yaml\n")
    with pytest.raises(ConfigError, match=r"nobody\.yaml does not exist \(included by .*c\.yaml\)"):
        read("--config", str(path))
    path.write_text("include: c.yaml\n")
    with pytest.raises(ConfigError, match="includes itself"):
        read("--config", str(path))
    path.write_text("include: below/round.yaml\n")
    (tmp_path / "below" / "round.yaml").write_text("include: ../c.yaml\n")
    with pytest.raises(ConfigError, match="includes itself"):
        read("--config", str(path))


@pytest.mark.parametrize(
    ("later", "minutes", "epochs"),
    [
        (["--training.lr=1e-3"], 20.0, 800),
        (["--training.epochs=7"], 0.0, 7),
        (["--training.minutes=3"], 3.0, 800),
        (["--training.minutes=3", "--training.epochs=7"], 3.0, 7),
        (["--config", "FILE"], 0.0, 9),
    ],
)
def test_who_gives_epochs_over_minutes_trains_by_epochs(tmp_path, later, minutes, epochs):
    (tmp_path / "below.yaml").write_text("training: {minutes: 20}\n")
    (tmp_path / "above.yaml").write_text("include: below.yaml\ntraining: {epochs: 9}\n")
    later = [str(tmp_path / "above.yaml") if word == "FILE" else word for word in later]
    training = read("--config", str(tmp_path / "below.yaml"), *later).training
    assert (training.minutes, training.epochs) == (minutes, epochs)


def test_missing_required_key():
    with pytest.raises(ConfigError, match=r"data\.train is required"):
        parse(pretrain.SCHEMA, ["--model.name=x", "--logging.run_dir=y"], "doc")
    for schema in (finetune.SCHEMA, evaluate.SCHEMA):
        with pytest.raises(ConfigError, match=r"data\.test is required"):
            parse(schema, ["--model.name=x", "--data.train=x.beton"], "doc")


@pytest.mark.parametrize(
    ("schema", "train", "name", "method", "folder"),
    [
        (pretrain, "data/pets_train.beton", "deit_tiny_patch16_224", "idmm", "runs/pets_deit_tiny"),
        (pretrain, "data/pets_train.beton", "t2t_vit_7", "dino", "runs/pets_t2t_vit_7_dino"),
        (pretrain, "elsewhere/my.photos.beton", "pvt_v2_b0", "idmm", "runs/my.photos_pvt_v2_b0"),
        (pretrain, "cache/birds/train.beton", "resnet50.a1_in1k", "idmm", "runs/birds_resnet50"),
        (finetune, "data/pets_train.beton", "deit_tiny_patch16_224", None, "runs/pets_deit_tiny_finetune"),
    ],
)
def test_a_run_folder_is_named_after_dataset_backbone_and_method(schema, train, name, method, folder):
    values = {"data.train": train, "data.test": "x.beton", "model.name": name}
    values |= {"method.name": method} if method else {}
    assert make_config(schema.SCHEMA, values).logging.run_dir == folder
    assert make_config(schema.SCHEMA, {**values, "logging.run_dir": "auto"}).logging.run_dir == folder
    assert make_config(schema.SCHEMA, {**values, "logging.run_dir": "mine"}).logging.run_dir == "mine"


def test_files_that_are_missing_are_named_before_training(tmp_path, tiny_beton):
    """The run that weights come from first, then the datasets."""
    values = {"data.train": str(tmp_path / "a"), "data.test": str(tmp_path / "b"), "model.name": "x"}
    values["model.init"] = str(tmp_path / "run")
    for missing in ("model.init", "data.train", "data.test"):
        says = f"{values[missing]}$" if missing == "data.train" else f"{missing}: {values[missing]} does not exist"
        with pytest.raises(ConfigError, match=says):
            check_files(make_config(finetune.SCHEMA, values))
        values[missing] = str(tiny_beton)
    check_files(make_config(finetune.SCHEMA, values))
    with pytest.raises(ConfigError, match=rf"data\.test: {tmp_path} is a folder, and this takes a \.beton file"):
        check_files(make_config(finetune.SCHEMA, {**values, "data.test": str(tmp_path)}))
    values = {"data.train": str(tiny_beton), "data.test": str(tmp_path / "b"), "model.name": "x"}
    check_files(make_config(pretrain.SCHEMA, values))
    with pytest.raises(ConfigError, match=r"data\.test: .* does not exist"):
        check_files(make_config(pretrain.SCHEMA, {**values, "online_eval.every": 1}))


@pytest.mark.parametrize(
    "content", ["model: vit_small", "- 1", "", "model: {name: x}", "a: [", "model: {mean: [0, 0, 0]}", "\0"]
)
def test_another_programs_config_is_none_of_a_run(tmp_path, content):
    """A folder of a project may have a config.yaml of its own above the weights."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "config.yaml").write_text(content)
    assert find_run_config(tmp_path / "weights" / "x.pth") is None
    assert read_run_config(tmp_path / "weights" / "x.pth") == {}
    (tmp_path / "weights" / "config.yaml").write_text(content)
    assert find_run_config(tmp_path / "weights" / "x.pth") is None


def test_the_config_of_a_run_is_beside_its_files_or_above_them(tmp_path, monkeypatch):
    run, whole = (
        tmp_path / "run",
        {"model": {"name": "x", "image_size": 32, "options": {}}, "logging": {"run_dir": "r"}},
    )
    (run / "checkpoints" / "aside_1").mkdir(parents=True)
    (run / "weights").mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(whole))
    assert read_run_config(run) == whole
    for of in ("", "backbone.safetensors", "checkpoints", "checkpoints/aside_1/best.pt", "weights/x.pth"):
        assert find_run_config(run / of) == run / "config.yaml", of
    monkeypatch.chdir(run)
    assert find_run_config("timm:deit_tiny_patch16_224.fb_in1k") is None
    assert find_run_config("backbone.safetensors") == Path("config.yaml")


def test_the_loaders_augment_and_the_section_are_one(tmp_path):
    assert Augment(**vars(read().augment)) == Augment()
    for values in ({"flip_prob": 1.5}, {"hue": 0.6}, {"blur_sigma": (3, 2)}, {"randaugment": 3}, {"contrast": -1}):
        ((key, value),) = values.items()
        with pytest.raises(ValueError, match=rf"Augment\.{key}: .* is not"):
            Augment(**values)
        with pytest.raises(ConfigError, match=rf"augment\.{key}: .* is not"):
            read(f"--augment.{key}={list(value) if isinstance(value, tuple) else value}")


def test_help_tells_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for section, (_, params) in pretrain.SCHEMA.items():
        for key in params:
            assert f"--{section}.{key}=" in shown


@pytest.mark.parametrize("schema", [pretrain, finetune, evaluate], ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_default_of_the_help_can_be_typed(schema, capsys):
    """What --help shows as a default, given as an argument, is the default."""
    required = ["--data.train=x.beton", "--data.test=x.beton", "--model.name=x"]
    with pytest.raises(SystemExit):
        parse(schema.SCHEMA, ["--help"], "doc")
    shown = capsys.readouterr().out
    typed = []
    for section, (_, params) in schema.SCHEMA.items():
        for key, param in params.items():
            text = shown.split(f"--{section}.{key}=")[1].split("\n")[1]
            if not param.required:
                typed.append(f"--{section}.{key}={text.rpartition('(default ')[2].removesuffix(')')}")
    assert len(typed) > 15
    assert parse(schema.SCHEMA, [*required, *(t for t in typed if "data.test" not in t)], "doc") == parse(
        schema.SCHEMA, required, "doc"
    )


TYPED = {
    "--data.train=data/set #2.beton": ("data.train", "data/set #2.beton"),
    "--logging.run_dir=2024-05-01": ("logging.run_dir", "2024-05-01"),
    "--logging.run_dir=010": ("logging.run_dir", "010"),
    "--logging.run_dir=12:30": ("logging.run_dir", "12:30"),
    "--logging.run_dir=on": ("logging.run_dir", "on"),
    "--logging.run_dir=[a]": ("logging.run_dir", "[a]"),
    "--model.name={x}: y": ("model.name", "{x}: y"),
    "--training.resume=1e5": ("training.resume", "1e5"),
    "--training.resume=no": ("training.resume", "no"),
    "--training.resume=False": ("training.resume", "no"),
    "--training.epochs=010": ("training.epochs", 10),
    "--training.lr=1e-3": ("training.lr", 0.001),
    "--training.batch_size=auto": ("training.batch_size", "auto"),
    "--training.compile=off": ("training.compile", False),
    "--model.options={depth: 2}": ("model.options", {"depth": 2}),
    "--model.mean=[0.5, 0.5, 0.4]": ("model.mean", [0.5, 0.5, 0.4]),
}


@pytest.mark.parametrize("argument", TYPED)
def test_what_is_typed_stays_what_it_is(argument):
    """The type of a key decides how a value is read: text as it stands, numbers decimal, lists and mappings as YAML."""
    (section, key), wanted = TYPED[argument][0].split("."), TYPED[argument][1]
    found = getattr(getattr(read(argument), section), key)
    assert (type(found), found) == (type(wanted), wanted)


@pytest.mark.parametrize("value", ["[0.5, 0.5]", "0.5", "[0.5, 0.5, 2]", "abc"])
def test_a_mean_is_three_numbers(value):
    with pytest.raises(ConfigError, match=r"model.mean: .* is not \[red, green, blue\]"):
        read(f"--model.mean={value}")
