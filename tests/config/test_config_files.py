"""The files in rn_configs: each loads, trains, is refused by the other script, and stands in the README there."""

import re

import numpy as np
import pytest
from helpers import ROOT, read_losses, run_script

from idmm_fast.config import as_dict, finetune, load_yaml, make_config, parse, pretrain

FOLDER = ROOT / "rn_configs"
SCRIPTS = {"train_idmm.py": (FOLDER, pretrain.SCHEMA), "finetune.py": (FOLDER / "finetune", finetune.SCHEMA)}
OWN = ["--data.train=data/mine_train.beton", "--data.test=data/mine_test.beton"]
BELOW = ("base/pretrain.yaml", "own.yaml")
# Each dataset's file, and each backbone over that of pets: (script, its files).
COMBINATIONS = [
    (script, files)
    for script, (folder, _) in SCRIPTS.items()
    for files in (
        *([path] for path in sorted(folder.glob("*.yaml"))),
        *([folder / "pets.yaml", path] for path in sorted((folder / "backbones").glob("*.yaml"))),
    )
]


def name_of(combination):
    """A short name of a combination of files, for pytest."""
    script, files = combination
    return f"{script.removesuffix('.py')}-{'+'.join(path.stem for path in files)}"


def arguments(files):
    return [text for path in files for text in ("--config", str(path))]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_every_config_loads(combination):
    script, files = combination
    schema = SCRIPTS[script][1]
    cfg = parse(schema, [*arguments(files), *(OWN if files[0].stem == "own" else [])], "doc")
    assert make_config(schema, {f"{s}.{k}": v for s, keys in as_dict(cfg).items() for k, v in keys.items()}) == cfg
    assert re.fullmatch(rf"runs/[\w-]+{'_finetune' if script == 'finetune.py' else ''}", cfg.logging.run_dir)


@pytest.mark.parametrize("path", sorted((FOLDER / "methods").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_method_goes_over_a_dataset(path):
    cfg = parse(pretrain.SCHEMA, arguments([FOLDER / "pets.yaml", path]), "doc")
    assert cfg.method.name == {"instance": "idmm", "instance_muon": "idmm"}.get(path.stem, path.stem)


@pytest.mark.parametrize("path", sorted((FOLDER / "methods").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_method_is_the_same_over_the_recommended_recipe(path):
    """But for its minutes: nothing of the recipe may be left in what is called IDMM or SimCLR."""
    over = [as_dict(parse(pretrain.SCHEMA, [*arguments([FOLDER / below, path]), *OWN], "doc")) for below in BELOW]
    assert [each["training"].pop("minutes") for each in over] == [0, 20]
    for each in over:
        if each["method"]["name"] != "idmm":  # what other methods do not look at
            assert each["cutmix"]["alpha"] == 0
            del each["cutmix"]["from_epoch"], each["training"]["label_smoothing"]
    assert over[0] == over[1]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_a_configuration_of_the_other_script_is_called_that(combination):
    script, files = combination
    (other,) = set(SCRIPTS) - {script}
    refused = run_script(other, "--config", files[-1])
    assert refused.returncode == 1
    verb = {"train_idmm.py": "pretrain"}.get(script, "finetune")
    assert f"error: {files[-1]} is a configuration of idmm-fast {verb}, " in refused.stderr


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.integration
@pytest.mark.parametrize(
    "combination",
    [
        pytest.param(c, id=name_of(c), marks=[] if c[1][0].stem == "pets" else pytest.mark.slow)
        for c in COMBINATIONS
        if c[1][0].stem != "demo"
    ],
)
def test_every_config_trains(combination, tiny_beton, tmp_path):
    """Two steps of each; every backbone always, the other datasets, which share their base, with `make test-slow`."""
    script, files = combination
    shown = run_script(
        script,
        *arguments(files),
        f"--data.train={tiny_beton}",
        f"--data.test={tiny_beton}",
        "--training.batch_size=2",
        "--training.max_steps=2",
        "--training.compile=false",
        "--training.device=cpu",
        f"--logging.run_dir={tmp_path / 'run'}",
    )
    assert shown.returncode == 0, shown.stderr
    assert len(read_losses(tmp_path / "run")) == 2
    assert np.isfinite(read_losses(tmp_path / "run")).all()


def test_the_readme_lists_the_files_with_what_is_in_them():
    rows = re.findall(r"^\| `(\S+\.yaml)` \|(.*)\|$", (FOLDER / "README.md").read_text(), re.M)
    listed, there = dict(rows), {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.yaml")}
    assert len(rows) == len(listed)
    assert set(listed) <= there
    # A dataset's or a method's file that somebody adds explains itself; all others are listed.
    assert all(re.fullmatch(r"(finetune/|methods/)?[\w-]+\.yaml", name) for name in there - set(listed))
    for script, files in COMBINATIONS:
        name = str(files[0].relative_to(FOLDER))
        if len(files) > 1 or name not in listed:
            continue
        cells = [cell.strip() for cell in listed[name].split("|")]
        cfg = parse(SCRIPTS[script][1], [*arguments(files), *(OWN if files[0].stem == "own" else [])], "doc")
        assert cells[3].endswith(f", {cfg.model.image_size}")
        minutes = cfg.training.minutes
        assert cells[4] == (f"{minutes:g} minutes" if minutes else str(cfg.training.epochs))


def test_the_recommended_recipe_is_that_of_own_images():
    """Its settings are in one file; the fine-tuning has Muon too, and the length is a time."""
    own = parse(pretrain.SCHEMA, [*arguments([FOLDER / "own.yaml"]), *OWN], "doc")
    recipe = load_yaml(pretrain.SCHEMA, FOLDER / "methods" / "instance_muon.yaml")
    assert {f"{s}.{k}": v for s, keys in as_dict(own).items() for k, v in keys.items()}.items() >= {
        (key, value) for key, value in recipe.items() if key != "crops.groups"
    }
    assert own.crops.groups == recipe["crops.groups"]
    assert own.training.minutes == 20
    assert parse(finetune.SCHEMA, [*arguments([FOLDER / "finetune" / "own.yaml"]), *OWN], "doc").training.optimizer == (
        own.training.optimizer
    )
