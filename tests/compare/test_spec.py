"""Sweep files, runs and budgets; the digest that tells whether a run is done; the subsets of a run."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from fastargs import Param
from helpers import FINETUNE, PRETRAIN, ROOT

from idmm_fast.beton import open_beton, write_beton
from idmm_fast.beton.format import SUMS_MARK
from idmm_fast.compare import pool
from idmm_fast.compare.pool import cores_of_jobs
from idmm_fast.compare.runs import SweepAxes, make_runs
from idmm_fast.compare.spec import RunSpec, SweepConfig, parse_budget
from idmm_fast.compare.store import RECIPE, ResultStore, counted_values, run_of, settings_digest
from idmm_fast.compare.subsets import DatasetFiles
from idmm_fast.config import ConfigError, keys, load_yaml, make_config
from idmm_fast.config.types import Float, Str
from idmm_fast.datasets import Split

METHODS = ROOT / "rn_configs" / "methods"


def tiny(path, seed, labels=None):
    """A beton of eight small images of noise, of two classes unless `labels` says otherwise."""
    images = list(np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), np.uint8))
    split = Split(images, labels or [k % 2 for k in range(8)], ["a", "b"])
    return write_beton(path, split, dataset="test", name="train", mode="raw", quiet=True).path


def as_by_ffcv(path):
    """Without checksums, as FFCV's own writer leaves it."""
    data = bytearray(path.read_bytes())
    at = data.index(np.array([SUMS_MARK]).tobytes())
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    assert open_beton(path).table_checksum == 0


@pytest.mark.parametrize("writer", ["ours", "ffcv"])
def test_a_digest_depends_on_what_the_betons_hold(sweep_dir, writer):
    """Not by their names: other pixels or other labels are other settings, and so is each of the three files."""
    run = RunSpec("x", 0, "balanced", "idmm", 0, 1500, "y", 128)
    config = SweepConfig(sweep_dir / "compare.yaml")
    datasets = DatasetFiles(sweep_dir / "data", sweep_dir / "made")
    files = [sweep_dir / "data" / f"{name}.beton" for name in ("x_train", "y_train", "y_test")]

    def settings(*seeds, labels=None):
        for file, seed in zip(files, seeds):
            tiny(file, seed, labels)
            if writer == "ffcv":
                as_by_ffcv(file)
        return settings_digest(run, config, datasets)

    first = settings(1, 2, 3)
    others = [settings(4, 2, 3), settings(1, 4, 3), settings(1, 2, 4), settings(1, 2, 3, labels=[0] * 7 + [1])]
    assert len({first, *others}) == 5
    assert settings(1, 2, 3) == first  # written again, the same


def test_a_subset_is_of_the_images_there_are(sweep_dir):
    """Of two datasets with one name in two folders, and of one that was converted anew."""
    betons = DatasetFiles(sweep_dir / "data", sweep_dir / "made")

    def pixels(folder, seed=None):
        if seed is not None:
            (sweep_dir / folder).mkdir(exist_ok=True)
            tiny(sweep_dir / folder / "x_train.beton", seed)
        some = open_beton(
            betons.train(RunSpec(str(sweep_dir / folder / "x"), 4, "balanced", "idmm", 0, 100, "same", 100))
        )
        whole = open_beton(sweep_dir / folder / "x_train.beton")
        assert set(some.sums) <= set(whole.sums)
        return some.path

    first, second = pixels("A", 1), pixels("B", 2)
    assert pixels("A", 3) != first
    assert pixels("B") == second  # not made again


def test_a_target_in_another_folder_is_evaluated_there(sweep_dir):
    (sweep_dir / "far").mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        tiny(sweep_dir / "far" / f"x_{split}.beton", seed)
    betons = DatasetFiles(sweep_dir / "data", sweep_dir / "made")
    run = RunSpec("tiny", 0, "balanced", "idmm", 0, 1500, str(sweep_dir / "far" / "x"), 128)
    assert betons.of(run)[1:] == (sweep_dir / "far" / "x_train.beton", sweep_dir / "far" / "x_test.beton")
    assert settings_digest(run, SweepConfig(sweep_dir / "compare.yaml"), betons)


@pytest.mark.parametrize(
    ("schema", "free"),
    [
        (PRETRAIN, {"online_eval.every", "online_eval.linear", "online_eval.unlabelled_every"}),
        (FINETUNE, {"model.init", "progressive.stages", "logging.report"}),
    ],
)
def test_every_key_counts_but_these(schema, free):
    """Those change no number, or only the rounding."""
    free |= {"data.train", "data.test", "data.num_workers", "data.cache", "logging.run_dir"} | {
        f"training.{k}"
        for k in (
            "seed",
            "resume",
            "device",
            "compile",
            "channels_last",
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
            "max_nonfinite_steps",
        )
    }
    cfg = make_config(
        schema, {"data.train": "x", "data.test": "y", "logging.run_dir": "z", "model.name": "m", "training.amp": "fp32"}
    )
    before = counted_values(schema, cfg)
    for key in keys(schema):
        section, name = key.split(".")
        kept = getattr(getattr(cfg, section), name)
        setattr(getattr(cfg, section), name, "bf16" if name == "amp" else "cpu" if name == "device" else "another")
        assert (counted_values(schema, cfg) == before) == (key in free), key
        setattr(getattr(cfg, section), name, kept)


def test_a_new_key_that_is_off_leaves_done_what_is_done():
    """Whatever "off" is; but a key that is off, and is on by default, counts."""
    values = {"data.train": "x", "logging.run_dir": "z", "model.name": "m", "training.amp": "fp32"}
    before = counted_values(PRETRAIN, make_config(PRETRAIN, values))
    section, params = PRETRAIN["augment"]
    new = {"new_prob": Param(Float(0, 1), "", default=0.0), "new_mode": Param(Str(), "", default=None)}
    schema = PRETRAIN | {"augment": (section, params | new)}
    assert counted_values(schema, make_config(schema, values)) == before
    for key, value in (("new_prob", 0.5), ("new_mode", "x"), ("blur_prob", 0.0)):
        assert counted_values(schema, make_config(schema, values | {f"augment.{key}": value})) != before
    ends = [counted_values(PRETRAIN, make_config(PRETRAIN, values | {"training.weight_decay_end": 0.0})), before]
    assert ends[0] != ends[1]  # none is another schedule than 0
    assert "training.optimizer" not in before  # runs that were made before there was such a key stay done
    muon = counted_values(PRETRAIN, make_config(PRETRAIN, values | {"training.optimizer": "muon"}))
    assert muon == before | {"training.optimizer": "muon"}


def test_runs_of_so_many_minutes_wait_for_a_budget(sweep_dir):
    """Training from scratch is the same for all lengths."""
    axes = SweepAxes(["tiny"], ["random", "idmm"], minutes=2.5)
    scratch, timed = make_runs(axes, SweepConfig(sweep_dir / "compare.yaml"), sweep_dir / "data")
    assert (scratch.minutes, scratch.budget) == (0, 0)
    assert (timed.minutes, timed.budget) == (2.5, 0)
    assert str(timed) == "tiny, idmm, seed 0, 2.5 min +100000"


def test_a_record_from_before_there_were_minutes_is_the_run_it_was():
    run = RunSpec("tiny", 0, "balanced", "idmm", 0, 1500, "same", 128)
    old = {key: value for key, value in asdict(run).items() if key != "minutes"}
    assert run_of(old) == run
    assert run_of(asdict(replace(run, minutes=3.0))).minutes == 3.0


@pytest.mark.parametrize(
    ("available", "threads", "jobs", "wanted"),
    [
        ([0, 1, 4, 5], 2, 2, [[0, 1], [4, 5]]),
        ([0, 1, 2], 1, 2, [[0], [1]]),
        ([3, 7], 2, 1, [[3, 7]]),
        ([3], 1, 2, [[3], [3]]),
    ],
)
def test_jobs_have_cores_of_their_own(available, threads, jobs, wanted):
    assert cores_of_jobs(available, threads, jobs) == wanted


def test_a_digest_depends_on_labels_sizes_precision_and_recipe(sweep_dir):
    def settings(recipe=RECIPE, **sections):
        tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
        for section, values in sections.items():
            tree[section] |= values
        (sweep_dir / "other.yaml").write_text(yaml.safe_dump(tree))
        run = RunSpec("tiny", 24, "balanced", "random", 0, 0, "same", 128)
        files = DatasetFiles(sweep_dir / "data", sweep_dir / "made")
        return settings_digest(run, SweepConfig(sweep_dir / "other.yaml"), files, recipe)

    assert settings() == settings(finetune={"data.num_workers": 1})
    others = [
        settings(finetune={"data.per_class": 3}),
        settings(1),
        settings(pretrain={"model.image_size": 16}),
        settings(finetune={"training.amp": "bf16"}),
    ]
    assert len({settings(), *others}) == 5


def test_only_the_last_line_of_the_results_may_be_cut_short(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"cut sho')
    assert ResultStore(tmp_path).records == [{"a": 1}, {"b": 2}]
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n{"cut sho\n{"b": 2}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .*results\.jsonl is damaged"):
        ResultStore(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n1\n')  # a line that was not cut
    with pytest.raises(ConfigError, match=r"line 2 of .*results\.jsonl is damaged"):
        ResultStore(tmp_path)


def test_an_unknown_key_of_a_sweep_file_is_named(sweep_dir):
    (sweep_dir / "compare.yaml").write_text("pretrained: {}\n")
    with pytest.raises(ConfigError, match="no key 'pretrained'; there are model, pretrain"):
        SweepConfig(sweep_dir / "compare.yaml")
    (sweep_dir / "compare.yaml").write_text("pretrain: {training: {learning_rate: 1}}\n")
    with pytest.raises(ConfigError, match=r"compare\.yaml: there is no key 'training.learning_rate'"):
        SweepConfig(sweep_dir / "compare.yaml").pretrain_config(
            RunSpec("tiny", 0, "balanced", "idmm", 0, 100, "same", 100), "x", 64, "x"
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("methods: [a]\n", r"methods must be a mapping, not \['a'\]"),
        ("methods: {a: idmm}\n", r"methods\.a must be a mapping, not idmm"),
        ("methods: {a: {base: b}, b: {base: a}}\n", r"methods\.a is a variant of itself: a -> b -> a"),
        ("methods: {a: {base: a}}\n", r"methods\.a is a variant of itself: a -> a"),
        ("methods: {a: [}\n", r"compare\.yaml is not YAML"),
        ("methods: {a: {base: [idmm]}}\n", r"methods\.a\.base must be the name of a method, not \['idmm'\]"),
        ("pretrain: [1]\n", r"compare\.yaml: pretrain must be a mapping, not \[1\]"),
        ("model: deit\n", r"compare\.yaml: model must be a mapping, not deit"),
        ("min_crop_scale: [1]\n", r"compare\.yaml: min_crop_scale must be a number, not \[1\]"),
        ("warmup_fraction: few\n", r"compare\.yaml: warmup_fraction must be a number, not few"),
    ],
)
def test_mistakes_of_a_sweep_file_are_sentences(sweep_dir, text, says):
    (sweep_dir / "compare.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        SweepConfig(sweep_dir / "compare.yaml")


def test_empty_keys_of_a_sweep_file_are_as_none(tmp_path):
    empty = "model: {name: m}\npretrain:\nfinetune:\nmethods:\nwarmup_fraction:\nmin_crop_scale:\n"
    run = RunSpec("x", 0, "balanced", "simclr", 0, 800, "same", 800)
    found = []
    for text in (empty, "model: {name: m}\n"):
        (tmp_path / "own.yaml").write_text(text)
        found.append(SweepConfig(tmp_path / "own.yaml").pretrain_config(run, "x", 100, "x"))
    assert found[0] == found[1]
    assert found[0].crops.groups[0]["scale"] == load_yaml(PRETRAIN, METHODS / "simclr.yaml")["crops.groups"][0]["scale"]


@pytest.mark.parametrize("folder", ["", "methods"])
def test_a_sweep_file_anywhere_has_the_methods_that_come_along(tmp_path, folder):
    """Beside those in a folder of its own; a message names the methods that there are."""
    methods = {"simclr": {}, "a": {"base": "simclr"}, "b": {"base": "a"}, "none": {}, "of_none": {"base": "none"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"model": {"name": "m"}, "methods": methods}))
    if folder:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text("training: {lr: 0.25}\n")
    config = SweepConfig(tmp_path / "own.yaml")

    def of(method):
        return config.pretrain_config(RunSpec("x", 0, "balanced", method, 0, 800, "same", 1), "x", 100, "x")

    assert of("b").method.name == of("simclr").method.name == "simclr"
    if folder:
        assert of("mine").training.lr == 0.25
    packaged = {file.stem for file in METHODS.glob("*.yaml")}
    there = sorted({*packaged, "a", "b", "random", *(["mine"] if folder else [])})
    with pytest.raises(ConfigError, match=f"there is no method 'none'; there are {', '.join(there)}$"):
        of("of_none")


def test_methods_beside_the_folder_of_a_sweep_file_are_found_from_inside_it(tmp_path, monkeypatch):
    for name in ("sweeps", "methods"):
        (tmp_path / name).mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text("model: {name: m}\n")
    (tmp_path / "methods" / "mine.yaml").write_text("training: {lr: 0.25}\n")
    monkeypatch.chdir(tmp_path / "sweeps")
    run = RunSpec("x", 0, "balanced", "mine", 0, 800, "same", 1)
    assert SweepConfig("own.yaml").pretrain_config(run, "x", 100, "x").training.lr == 0.25


def test_frozen_features_are_evaluated_as_the_fine_tuning_reads_images(sweep_dir):
    tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
    tree["model"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.2]}
    tree.setdefault("finetune", {})["data"] = {"on_error": "replace"}
    (sweep_dir / "own.yaml").write_text(yaml.safe_dump(tree))
    config = SweepConfig(sweep_dir / "own.yaml")
    run = RunSpec("tiny", 0, "balanced", "idmm", 0, 800, "same", 64)
    cfg = config.evaluate_config(config.finetune_config(run, ("x", "x"), 64, None, "x"), ("x", "x"), None)
    assert (cfg.data.on_error, cfg.model.mean, cfg.model.std) == ("replace", [0.1, 0.2, 0.3], [0.2, 0.2, 0.2])


@pytest.mark.parametrize("section", ["pretrain", "finetune"])
def test_a_sweep_file_gives_no_minutes(sweep_dir, section):
    """They would end a training whatever the budget is that its record names."""
    tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
    tree[section]["training"] = tree[section]["training"] | {"minutes": 5}
    (sweep_dir / "compare.yaml").write_text(yaml.safe_dump(tree))
    run = RunSpec("tiny", 0, "balanced", "idmm", 0, 1500, "same", 128)
    files = DatasetFiles(sweep_dir / "data", sweep_dir / "made")
    option = {"pretrain": "--minutes", "finetune": "--finetune-budget"}[section]
    with pytest.raises(ConfigError, match=rf"compare\.yaml: .*training\.minutes=5, .* give {option}$"):
        settings_digest(run, SweepConfig(sweep_dir / "compare.yaml"), files)


def test_whole_epochs_that_are_far_from_a_budget_are_told_once(sweep_dir, monkeypatch, capsys):
    """64 images, of six crops and of two: 384 and 128 crops an epoch."""
    monkeypatch.setattr(pool, "_pending_groups", lambda *_: [])
    config, data = SweepConfig(sweep_dir / "compare.yaml"), sweep_dir / "data"
    axes = SweepAxes(["tiny"], ["random", "idmm", "simclr"], seeds=[0, 1], budget="540", finetune_budget=["100"])
    pool.run_sweep(make_runs(axes, config, data), config, data, sweep_dir / "out")
    assert capsys.readouterr().out.splitlines() == [
        f"fine-tuning on {data}/tiny_train.beton: 128 crops instead of 100, since an epoch has 64",
        f"idmm on {data}/tiny_train.beton: 384 crops instead of 540, since an epoch has 384",
    ]


@pytest.mark.parametrize("sweep", ["small", "equal_time", "paper"])
def test_the_recommended_recipe_has_its_own_rate_in_every_sweep(sweep):
    run = RunSpec("x", 0, "balanced", "instance_muon", 0, 800_000, "same", 1)
    cfg = SweepConfig(ROOT / "rn_configs" / "compare" / f"{sweep}.yaml").pretrain_config(run, "x", 2040, "x")
    assert cfg.training.lr == load_yaml(PRETRAIN, METHODS / "instance_muon.yaml")["training.lr"]


def test_all_images_of_the_pretraining_are_the_same_target(sweep_dir):
    """However they are named; some of them are not all. The table of transfer has its diagonal by that."""
    axes = {"datasets": ["tiny"], "methods": ["idmm"], "targets": ["same", "tiny"]}
    config, data = SweepConfig(sweep_dir / "compare.yaml"), sweep_dir / "data"
    assert [run.target for run in make_runs(SweepAxes(**axes), config, data)] == ["same"]
    some = make_runs(SweepAxes(**axes, images=[16]), config, data)
    assert [run.target for run in some] == ["same", "tiny"]


def test_every_method_sees_the_budget(sweep_dir):
    """At the sizes of rn_configs/compare/small.yaml."""
    config = SweepConfig(ROOT / "rn_configs" / "compare" / "small.yaml")
    for method in (
        "idmm",
        "instance",
        "simclr",
        "supcon",
        "moco_v2",
        "moco_v3",
        "dino",
        "idmm_no_smoothing",
        "idmm_no_cutmix",
        "idmm_two_crops",
    ):
        cfg = config.pretrain_config(RunSpec("x", 0, "balanced", method, 3, 800_000, "same", 1), "x", 2040, "x")
        crops = cfg.training.epochs * 2040 * sum(g["count"] for g in cfg.crops.groups)
        assert abs(crops / 800_000 - 1) < 0.01
        assert cfg.training.seed == 3
        assert (cfg.training.batch_size, cfg.training.lr, cfg.model.image_size) == (128, 1e-3, 24)
        assert cfg.training.warmup_epochs == pytest.approx(0.05 * cfg.training.epochs)
        assert (cfg.cutmix.alpha > 0) == (method in ("idmm", "idmm_no_smoothing", "idmm_two_crops"))
    assert config.pretrain_config(RunSpec("x", 0, "balanced", "random", 0, 0, "same", 1), "x", 2040, "x") is None


@pytest.mark.parametrize(
    "method",
    ["idmm", "instance", "simclr", "supcon", "moco_v2", "moco_v3", "dino", "idmm_no_cutmix", "idmm_at_224_pixels"],
)
def test_the_papers_sweep_has_the_methods_own_settings(method):
    config = SweepConfig(ROOT / "rn_configs" / "compare" / "paper.yaml")
    file = ROOT / "rn_configs" / "methods" / f"{method}.yaml"
    run = RunSpec("x", 0, "balanced", method, 0, parse_budget("4800x", 2040), "same", parse_budget("200x", 2040))
    cfg = config.pretrain_config(run, "x", 2040, "x")
    assert cfg.training.epochs == round(4800 / sum(g["count"] for g in cfg.crops.groups))
    if file.exists():
        for key, value in load_yaml(PRETRAIN, file).items():
            section, name = key.split(".")
            found = getattr(getattr(cfg, section), name)
            assert found == value or name == "groups", key
    tuned = config.finetune_config(run, ("x", "x"), 2040, None, "x")
    assert (tuned.training.epochs, tuned.model.image_size, tuned.training.warmup_epochs) == (200, 224, 2)


@pytest.mark.parametrize(
    ("text", "wanted"), [("400000", 400_000), ("4e5", 400_000), ("4800x", 4800 * 64), ("1.5x", 96)]
)
def test_a_budget_is_a_number_of_crops(text, wanted):
    assert parse_budget(text, 64) == wanted


@pytest.mark.parametrize("text", ["many", "0", "x", "-3x", "inf", "infx", "1e999", "nan"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ConfigError, match="a budget is a number of crops"):
        parse_budget(text, 64)


def test_the_least_crop_scale_is_the_same_for_all(sweep_dir):
    tree = yaml.safe_load((sweep_dir / "compare.yaml").read_text())
    (sweep_dir / "compare.yaml").write_text(yaml.safe_dump(tree | {"min_crop_scale": 0.2}))
    cfg = SweepConfig(sweep_dir / "compare.yaml").pretrain_config(
        RunSpec("tiny", 0, "balanced", "idmm", 0, 1500, "same", 100), "x", 64, "x"
    )
    assert [g["scale"] for g in cfg.crops.groups] == [[0.2, 1.0], [0.2, 0.4]]


def test_the_results_are_those_of_the_sweep_file():
    """The runs of results.jsonl have the epochs and bases that rn_configs/compare/small.yaml gives them."""
    config = SweepConfig(ROOT / "rn_configs" / "compare" / "small.yaml")
    for entry in ResultStore(ROOT / "results").records:
        run = run_of(entry)
        cfg = config.pretrain_config(run, "x", run.images or entry["labels"], "x") if run.target == "same" else None
        assert cfg is None or cfg.training.epochs == entry["epochs"]
        assert config.base_method(run.method) == entry["base"]
