"""--data FOLDER on the command line: its own splits are read, whatever a configuration says of another data set."""

import numpy as np
import pytest
from helpers import run_script
from PIL import Image

from idmm_fast.beton import open_beton
from idmm_fast.beton.subset import write_subset
from idmm_fast.evaluate.tuned import count_trained_on

# Of a run's config.yaml.
MODEL = "model: {name: vit_tiny_patch16_224, image_size: 32, options: {depth: 2}}\nlogging: {run_dir: run}\n"


@pytest.fixture
def folder(tmp_path, photos, monkeypatch):
    """train, val and test of two classes, with 4, 3 and 2 images each; other images are converted into a cache."""
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "cache"))
    left = iter(photos)
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for k in range(count):
                Image.fromarray(next(left)).save(tmp_path / "images" / split / name / f"{k}.jpg")
    return tmp_path / "images"


def images_of(cfg):
    """How many images the betons of a configuration have, by split."""
    paths = {split: getattr(cfg.data, split, None) for split in ("train", "val", "test")}
    return {split: len(open_beton(path)) for split, path in paths.items() if path}


@pytest.fixture
def asked(monkeypatch):
    """The configurations that evaluation and fine-tuning were called with; nothing is computed."""
    seen = []
    result = {"top1": 0.0, "top5": 0.0, "test_images": 0}
    monkeypatch.setattr("idmm_fast.evaluate.frozen.evaluate_frozen", lambda cfg: (seen.append(cfg), {})[1])
    monkeypatch.setattr("idmm_fast.evaluate.tuned.evaluate_classifier", lambda cfg: None)
    monkeypatch.setattr("idmm_fast.train.finetuning.finetune", lambda cfg: (seen.append(cfg), result)[1])
    return seen


def test_evaluation_of_a_run_reads_the_folder_that_is_named(folder, asked, tiny_beton, tmp_path):
    """The run's own data.test once stayed: accuracies on one data set with the neighbours of another."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {{train: {tiny_beton}, test: {tiny_beton}}}\n{MODEL}")
    shown = run_script("evaluate.py", "--checkpoint", run, "--data", folder)
    assert shown.returncode == 0, shown.stderr
    assert images_of(asked[-1]) == {"train": 8, "test": 4}
    shown = run_script("evaluate.py", "--checkpoint", run, "--data", folder, "--test", tiny_beton)
    assert shown.returncode == 0, shown.stderr
    assert images_of(asked[-1]) == {"train": 8, "test": 64}
    assert "64 test images, of which the most frequent class has 16 (25.00 %)" in shown.stdout
    run_script("evaluate.py", "--checkpoint", run)
    assert images_of(asked[-1]) == {"train": 64, "test": 64}


def test_pictures_of_a_run_go_where_it_lies_now(asked, tiny_beton, tmp_path):
    """Its configuration says where it was: there another run may be."""
    run = tmp_path / "moved"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(f"data: {{train: {tiny_beton}, test: {tiny_beton}}}\n{MODEL}")
    (run / "checkpoints" / "best.pt").touch()
    for checkpoint in (run, run / "checkpoints" / "best.pt"):
        assert run_script("evaluate.py", "--checkpoint", checkpoint).returncode == 0
        assert asked[-1].logging.run_dir == str(run)
    run_script("evaluate.py", "--checkpoint", run, "--logging.run_dir=elsewhere")
    assert asked[-1].logging.run_dir == "elsewhere"


@pytest.mark.parametrize("script", ["train_idmm.py", "finetune.py", "evaluate.py"])
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("--training.batch_size=0", "training.batch_size: 0 is not"),
        ("--data.num_workers=many", "data.num_workers: 'many' is not"),
        ("--model.init=nowhere", "nowhere does not exist"),
        ("--data.test=nowhere.beton", "data.test: nowhere.beton does not exist"),
    ],
)
def test_mistakes_are_told_before_a_folder_is_converted(folder, script, mistake, said, tmp_path):
    more = ["--online_eval.every=1"] if script == "train_idmm.py" else []
    shown = run_script(script, "--data", folder, "--out", tmp_path / "run", "--model.name=x", *more, mistake)
    assert shown.returncode == 1
    assert said in shown.stderr
    assert not (tmp_path / "cache").exists()


def test_a_folder_takes_the_place_of_all_splits_of_a_configuration(folder, asked, tiny_beton, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{train: {tiny_beton}, test: {tiny_beton}, val: {tiny_beton}}}\nmodel: {{name: vit_tiny_patch16_224}}\n"
    )
    shown = run_script("finetune.py", "--config", config, "--data", folder)
    assert shown.returncode == 0, shown.stderr
    assert images_of(asked[-1]) == {"train": 8, "val": 6, "test": 4}
    config.write_text(f"data: {{train: {folder}, test: {tiny_beton}}}\nmodel: {{name: vit_tiny_patch16_224}}\n")
    run_script("finetune.py", "--config", config)  # of one file: that is meant
    assert images_of(asked[-1]) == {"train": 8, "val": 6, "test": 64}


def test_a_fine_tuning_has_the_model_that_is_typed_then_that_of_init_then_that_of_the_configuration(
    asked, tiny_beton, tmp_path
):
    """A configuration once went before the run whose weights were asked for, and did not fit them."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(MODEL)

    def model(*arguments):
        betons = f"--data.train={tiny_beton}", f"--data.test={tiny_beton}"
        shown = run_script("finetune.py", "--config", "rn_configs/finetune/own.yaml", *betons, *arguments)
        assert shown.returncode == 0, shown.stderr
        return asked[-1].model

    assert model().name == "deit_tiny_patch16_224"
    theirs = model("--init", run)
    assert (theirs.name, theirs.options, theirs.image_size) == ("vit_tiny_patch16_224", {"depth": 2}, 224)
    assert model("--init", run, "--model.options={depth: 3}").options == {"depth": 3}
    assert model("--init", "timm:deit_small_patch16_224.fb_in1k").name == "deit_small_patch16_224"
    typed = model("--init", run, "--model.name=pvt_v2_b0")
    assert (typed.name, typed.options) == ("pvt_v2_b0", {})


def test_test_images_that_a_classifier_was_trained_on_are_counted_and_told(
    asked, tiny_beton, raw_beton, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {{train: {tiny_beton}, test: {raw_beton}}}\n{MODEL}")
    write_subset(tiny_beton, np.arange(9), tmp_path / "nine.beton")
    assert count_trained_on(open_beton(tiny_beton), run) == 64
    assert count_trained_on(open_beton(tmp_path / "nine.beton"), run) == 9
    assert count_trained_on(open_beton(raw_beton), run) == 0
    found = {"top1": 99.0, "top5": 100.0, "balanced_accuracy": 99.0, "ece": 1.0, "images": 9, "folder": None}
    monkeypatch.setattr("idmm_fast.evaluate.tuned.evaluate_classifier", lambda cfg: found | {"trained_on": 3})
    shown = run_script("evaluate.py", "--checkpoint", run)
    assert f"warning: 3 of 9 test images are in data.train of {run}: this is no accuracy on new images" in shown.stderr
