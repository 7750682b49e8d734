"""The demo from end to end, very small, and that what is done is not done again."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import PRETRAIN, ROOT
from PIL import Image

from idmm_fast.config import ConfigError, load_yaml
from idmm_fast.studies import demo
from idmm_fast.studies.demo import ARMS, MEASURES, _DemoConfigs, run_demo, table
from idmm_fast.train import finetuning, stopwatch, task

CONFIGS = [ROOT / "rn_configs" / name for name in ("demo.yaml", "methods/instance_muon.yaml", "finetune/demo.yaml")]
SMALL = [
    "--training.minutes=0",
    "--training.epochs=2",
    "--training.batch_size=16",
    "--data.per_class=4",
    "--training.compile=false",
    "--model.image_size=16",
    "--model.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}",
]


@pytest.fixture(scope="module")
def report(tiny_beton, tmp_path_factory):
    """Its folder, what it returned, and a call that runs it again. Its runs make only the pictures that it shows."""
    folder = tmp_path_factory.mktemp("demo")
    data = [f"--data.train={tiny_beton}", f"--data.test={tiny_beton}"]

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "plot_curves", lambda *args: None)
            patch.setattr(finetuning, "write_report", lambda *args, **options: None)
            return run_demo(*CONFIGS, folder, 2, [*data, *SMALL])

    return folder, run(), run


@pytest.mark.integration
def test_demo_reports(report):
    folder, content, _ = report
    page = (folder / "report.md").read_text()
    assert table(content) in page
    for arm in ("random", "idmm", "recipe"):
        for values in content["results"][arm].values():
            assert len(values) == 2
            assert all(0 <= v <= 100 for v in values)
    for training in (
        "IDMM: 2 epochs at 16 pixels, 6 crops of an image, batch 16, AdamW, lr 0.001, CutMix, label smoothing 0.1.",
        "instance discrimination: 2 epochs at 16 pixels, 1 crop of an image, batch 16, Muon, lr 0.002, "
        "CutMix from epoch 300 on, no label smoothing\n",
    ):
        assert training in page
    assert (folder / "pretrain_recipe_1" / "backbone.safetensors").exists()
    picture = np.asarray(Image.open(folder / "report.png"))
    assert picture.shape[0] > 500
    assert picture.std() > 10


@pytest.mark.integration
def test_table_holds_the_means_and_spreads(report):
    _, content, _ = report
    values = np.array(content["results"]["idmm"]["top1"])
    assert f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" in table(content)


@pytest.mark.integration
def test_what_is_done_is_not_done_again(report):
    folder, content, again = report
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert again()["results"] == content["results"]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before
    assert json.loads((folder / "report.json").read_text())["results"] == content["results"]


@pytest.fixture
def call(tmp_path, monkeypatch, tiny_beton):
    """Call the demo in tmp_path/demo with arguments and so many seeds; a seed takes a minute and trains nothing.

    Its runs begin unless `fails`, and end unless it `stops`.
    """
    now = [0.0]

    def call(*arguments, seeds=2, configs=CONFIGS, fails=False, stops=False):
        def run_seed(_, folder, seed):
            now[0] += 60
            if fails:
                raise ValueError
            (folder / f"pretrain_idmm_{seed}").mkdir(parents=True, exist_ok=True)
            (folder / f"pretrain_idmm_{seed}" / "config.yaml").touch()
            if stops:
                raise KeyboardInterrupt
            return {arm: dict.fromkeys(MEASURES, 50.0) for arm in ARMS}

        monkeypatch.setattr(demo, "_run_seed", run_seed)
        data = [f"--data.train={tiny_beton}", f"--data.test={tiny_beton}"]
        return run_demo(*configs, tmp_path / "demo", seeds, [*data, *arguments])

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    monkeypatch.setattr(demo, "_plot", lambda *_: None)
    return call


def test_the_minutes_are_those_of_all_calls(call):
    """Of one that was stopped, of all others, and of more seeds."""
    with pytest.raises(KeyboardInterrupt):
        call(stops=True)
    assert call()["minutes"] == 3
    assert call("--data.num_workers=1", seeds=4)["minutes"] == 7  # threads change no number


def test_other_settings_in_the_same_folder_are_refused(call, tmp_path):
    """Arguments, and configurations that have changed; but what failed before a run began binds nobody."""
    with pytest.raises(ValueError, match=r"^$"):
        call("--training.lr=1", fails=True)
    call("--training.minutes=1")
    with pytest.raises(ConfigError, match=r"begun with --training\.minutes 1, not 2, .*another --out, or delete"):
        call("--training.minutes=2")
    with pytest.raises(ConfigError, match=r"begun with --training\.label_smoothing left out, not 0"):
        call("--training.minutes=1", "--training.label_smoothing=0")
    (tmp_path / "other.yaml").write_text(f"include: {CONFIGS[1]}\ntraining: {{batch_size: 32}}\n")
    with pytest.raises(ConfigError, match=r"begun with pretrain .*batch 128.*, not .*batch 32"):
        call("--training.minutes=1", configs=[CONFIGS[0], tmp_path / "other.yaml", CONFIGS[2]])
    assert call("--training.minutes=1", seeds=3)["minutes"] == 5


def test_table_has_a_column_and_a_gain_for_each_pretraining():
    """By hand; and of a report without the recipe, as older ones are."""
    results = {
        "random": {"knn20": [50.0, 52.0], "top1": [60.0, 60.0]},
        "idmm": {"knn20": [61.0, 61.0], "top1": [59.0, 59.0]},
        "recipe": {"knn20": [70.0, 74.0], "top1": [66.0, 68.0]},
    }
    report = {"results": results, "train": 2040, "test": 10000, "labelled": 200}
    lines = table(report).splitlines()
    assert lines[0].endswith("| no pretraining | IDMM pretraining | gain | recommended recipe | gain |")
    assert lines[1] == "|---|---|---|---|---|---|"
    assert lines[2].endswith("| 51.0 ± 1.4 | 61.0 ± 0.0 | +10.0 ± 1.4 | 72.0 ± 2.8 | +21.0 ± 1.4 |")
    assert lines[3].endswith("| 60.0 ± 0.0 | 59.0 ± 0.0 | -1.0 ± 0.0 | 67.0 ± 1.4 | +7.0 ± 1.4 |")
    older = table(report | {"results": {arm: results[arm] for arm in ("random", "idmm")}})
    assert older.splitlines()[0].endswith("| no pretraining | IDMM pretraining | gain |")


def test_both_pretrainings_take_the_same_time():
    """The recipe is that of rn_configs/own.yaml; make demo has ten minutes for six pretrainings and the rest."""
    configs = _DemoConfigs(tuple(CONFIGS), [])
    idmm, recipe = configs.make("idmm"), configs.make("recipe")
    assert idmm.training.minutes == recipe.training.minutes <= 1
    own = load_yaml(PRETRAIN, ROOT / "rn_configs" / "own.yaml")
    for key in (
        "training.optimizer",
        "training.lr",
        "training.label_smoothing",
        "crops.groups",
        "cutmix.alpha",
        "cutmix.from_epoch",
    ):
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == own[key], key
    assert (recipe.model, recipe.data) == (idmm.model, idmm.data)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--training.epoch=2"], r"'training\.epoch'\. Did you mean 'training\.epochs'"),
        (["--config", "rn_configs/pets.yaml"], "there is no key 'config'"),
        (["--training={epochz: 2}"], r"'training\.epochz'"),
        (["--training.epochs"], "needs a value"),
    ],
)
def test_options_that_no_part_knows_are_errors(tmp_path, args, says):
    with pytest.raises(ConfigError, match=says):
        run_demo(*CONFIGS, tmp_path, 2, args)


def test_options_reach_the_parts_that_have_them(tmp_path, monkeypatch, tiny_beton):
    """In either form, and as a section; a key that one of the parts has is no error for the other."""
    seen = {}

    def stop(cfg):
        seen["cfg"] = cfg
        raise KeyboardInterrupt

    monkeypatch.setattr("idmm_fast.train.pretraining.pretrain", stop)
    args = [
        f"--data.train={tiny_beton}",
        f"--data.test={tiny_beton}",
        "--training.epochs",
        "7",
        "--training={lr: 0.25}",
        "--data.per_class=3",
    ]
    with pytest.raises(KeyboardInterrupt):
        run_demo(*CONFIGS, tmp_path, 2, args)
    assert (seen["cfg"].training.epochs, seen["cfg"].training.lr, seen["cfg"].training.seed) == (7, 0.25, 0)


def test_one_seed_is_refused():
    result = subprocess.run(
        [sys.executable, ROOT / "demo.py", "--seeds", "1"], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "no spread" in result.stderr
