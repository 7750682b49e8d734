"""The report of a classifier: its numbers against closed forms and scikit-learn, its files."""

import csv
import json

import numpy as np
import pytest
from helpers import FINETUNE, TINY_VIT, run_script, tiny_config
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, classification_report

from idmm_fast.beton import BetonError, open_beton, write_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.beton.subset import write_subset
from idmm_fast.config import ConfigError
from idmm_fast.convert import convert, listed_files
from idmm_fast.datasets import Split
from idmm_fast.evaluate import EvaluationImages, classification
from idmm_fast.evaluate.classification import Classified, expected_calibration_error, measure, write_report
from idmm_fast.evaluate.tuned import labels_by_name
from idmm_fast.models import load_trained
from idmm_fast.train import checkpoint
from idmm_fast.train.finetuning import Finetuning, finetune
from idmm_fast.train.folds import _write as write_fold
from idmm_fast.train.folds import run_folds


def made_up(images=500, classes=7, seed=0):
    """Probabilities that are right more often than not; the last class has no image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, images)
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = [f"class {chr(97 + k)}" for k in range(classes)]
    return Classified(np.arange(images), labels, probabilities.astype(np.float32), names)


def test_numbers_are_scikit_learns():
    found = made_up()
    predicted = found.probabilities.argmax(1)
    numbers = measure(found)
    theirs = classification_report(
        found.labels, predicted, labels=range(7), target_names=found.names, output_dict=True, zero_division=0
    )
    assert [row["name"] for row in numbers["classes"]] == found.names[:6]  # those that have images
    for row in numbers["classes"]:
        for ours, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert row[ours] == pytest.approx(100 * theirs[row["name"]][key])
        assert row["images"] == theirs[row["name"]]["support"]
    assert numbers["top1"] == pytest.approx(100 * (predicted == found.labels).mean())
    assert numbers["balanced_accuracy"] == pytest.approx(
        np.mean([100 * (predicted[found.labels == k] == k).mean() for k in range(6)])
    )
    in_images = found.probabilities[:, :6]
    among = measure(Classified(found.rows, found.labels, in_images / in_images.sum(1, keepdims=True), found.names[:6]))
    theirs = 100 * balanced_accuracy_score(found.labels, in_images.argmax(1))
    assert among["balanced_accuracy"] == pytest.approx(theirs)
    top5 = [label in np.argsort(-p)[:5] for label, p in zip(found.labels, found.probabilities)]
    assert numbers["top5"] == pytest.approx(100 * np.mean(top5))


def test_confused_classes_are_named():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([2, 2, 1, 1, 1, 2])
    found = Classified(np.arange(6), labels, np.eye(3, dtype=np.float32)[predicted], ["a", "b", "c"])
    assert [row["taken_for"] for row in measure(found)["classes"]] == ["c", None, None]
    assert [round(row["recall"]) for row in measure(found)["classes"]] == [0, 100, 100]


def test_a_report_says_how_far_its_numbers_go(tmp_path, monkeypatch):
    """25 images, 16 right: ± 100 sqrt(0.64 x 0.36 / 25) %; no top-5 of three classes, no precision without images."""
    monkeypatch.setattr(classification, "plot_confusion", lambda *args: None)
    monkeypatch.setattr(classification, "plot_mistakes", lambda *args: None)
    labels, predicted = np.array([0] * 15 + [1] * 8 + [2] * 2), np.array([0] * 15 + [1] + [0] * 7 + [1] * 2)
    found = Classified(np.arange(25), labels, np.eye(3, dtype=np.float32)[predicted], ["a", "b", "c"])
    write_report(
        found, EvaluationImages("x.beton", 32), tmp_path, "runs/x on caf\udce9", 100
    )  # a name that is no UTF-8
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# runs/x on caf\\udce9\n")
    assert "25 test images, 100 training images." in page
    assert "| top-1 | 64.00 | ± 9.60 |" in page
    assert "| share of the most frequent class | 60.00 |" in page
    assert "top-5" not in page
    assert "| c | 2 | 0.0 | - | 0.0 | b |" in page


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path, monkeypatch):
    """Neither of mistakes where there are none, nor of confusion where there are too many classes."""
    monkeypatch.setattr(classification, "plot_confusion", lambda matrix, names, path: path.touch())
    monkeypatch.setattr(classification, "plot_mistakes", lambda *args: args[3].touch())
    images, pictures = EvaluationImages("x.beton", 32, 1), {"confusion.png", "mistakes.png"}
    for right, most, wanted in ((False, 60, pictures), (True, 60, {"confusion.png"}), (True, 2, set())):
        predicted = np.arange(3) if right else np.array([1, 1, 2])
        found = Classified(np.arange(3), np.arange(3), np.eye(3, dtype=np.float32)[predicted], ["a", "b", "c"])
        monkeypatch.setattr(classification, "_PICTURE_CLASSES", most)
        write_report(found, images, tmp_path, "title")
        assert {path.name for path in tmp_path.glob("*.png")} == wanted
        assert all((name in (tmp_path / "report.md").read_text()) == (name in wanted) for name in pictures)


def test_each_image_has_a_line_with_its_prediction(tmp_path, monkeypatch):
    """In the order of the rows; a name with a comma is quoted."""
    monkeypatch.setattr(classification, "plot_confusion", lambda *args: None)
    titles = []
    monkeypatch.setattr(classification, "plot_mistakes", lambda path, rows, texts, *_: titles.extend(texts))
    probabilities = np.array([[0.75, 0.25], [0.125, 0.875]], np.float32)
    found = Classified(np.array([7, 3]), np.array([1, 1]), probabilities, ["cat", "dog, big"])
    write_report(found, EvaluationImages("x.beton", 32), tmp_path, "x")
    with open(tmp_path / "test_predictions.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["row", "true", "predicted", "probability"],
            ["3", "dog, big", "dog, big", "0.875"],
            ["7", "dog, big", "cat", "0.75"],
        ]
    assert titles == ["predicted (75 %):\ncat\ntrue: dog, big"]


@pytest.mark.parametrize(("right", "wanted"), [(8, 0.0), (10, 0.2), (4, 0.4), (0, 0.8)])
def test_calibration_error_is_the_gap_of_confidence_and_accuracy(right, wanted):
    """Ten images of which the model is 80 % sure."""
    probabilities = np.tile([0.8, 0.2], (10, 1))
    labels = np.array([0] * right + [1] * (10 - right))
    assert expected_calibration_error(probabilities, labels) == pytest.approx(wanted, abs=1e-9)


def test_calibration_errors_of_bins_do_not_cancel():
    probabilities = np.repeat([[0.9, 0.1], [0.6, 0.4]], 10, axis=0)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])  # 0.3 too sure, and 0.3 not sure enough
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.3)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


@pytest.mark.integration
def test_a_finetuning_leaves_a_report(tiny_beton, tmp_path):
    result = finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__epochs=2))
    page = (tmp_path / "f" / "report.md").read_text()
    numbers = json.loads((tmp_path / "f" / "report.json").read_text())
    assert numbers["top1"] == pytest.approx(result["top1"])
    assert f"| top-1 | {result['top1']:.2f} |" in page
    assert {row["name"] for row in numbers["classes"]} == {"red", "green", "blue", "yellow"}
    for name in ("confusion.png", "mistakes.png", "curves.png"):
        assert f"({name})" in page
        assert (tmp_path / "f" / name).stat().st_size > 3_000
    without = tiny_config(tiny_beton, tmp_path / "g", FINETUNE, training__epochs=1, logging__report=False)
    assert finetune(without)["test_images"] == 64
    assert not (tmp_path / "g" / "report.md").exists()


@pytest.mark.integration
def test_evaluate_reports_a_classifier_on_any_beton(tiny_beton, tmp_path, without_pictures):
    """Of a file with fewer classes in another order; another file's classes are refused."""
    finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__epochs=2))
    beton = open_beton(tiny_beton)
    names = ["yellow", "red"]
    rows = [row for row in range(64) if beton.classes[beton.label[row]] in names]
    images = decode_rows(beton, rows)
    labels = [names.index(beton.classes[beton.label[row]]) for row in rows]
    other = write_beton(
        tmp_path / "two.beton", Split(images, labels, names), dataset="x", name="x", mode="raw", quiet=True
    ).path
    shown = run_script("evaluate.py", "--checkpoint", tmp_path / "f", "--test", other, "--linear.enabled=false")
    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if line.startswith("classifier: "))
    numbers = json.loads((tmp_path / "f" / "report_two" / "report.json").read_text())
    assert f"top1 {numbers['top1']:.2f} %" in line
    network = load_trained(tmp_path / "f")
    from idmm_fast.loader import evaluation_loader

    right = 0
    second = open_beton(other)
    for (group,) in evaluation_loader(other, 64, 32):
        found = network.network(group.images).argmax(1).tolist()
        right += sum(network.label_names[k] == names[second.label[row]] for k, row in zip(found, group.idx_a.tolist()))
    assert numbers["top1"] == pytest.approx(100 * right / len(rows))
    with pytest.raises(BetonError, match="of classes that the classifier does not know, first 'yellow'"):
        labels_by_name(second, ["red", "green"])


@pytest.mark.integration
def test_a_validation_split_chooses_the_epoch(tiny_beton, tmp_path, without_pictures, monkeypatch):
    """The weights of the epoch with the highest accuracy on it are kept, and tested once."""
    for name, rows in (("train", range(0, 40)), ("val", range(40, 52)), ("test", range(52, 64))):
        write_subset(tiny_beton, list(rows), tmp_path / f"{name}.beton")
    values = {f"data.{name}": str(tmp_path / f"{name}.beton") for name in ("val", "test")}
    values |= {"training.epochs": 6, "training.evaluate_every": 1, "training.lr": 2e-2}
    cfg = tiny_config(tmp_path / "train.beton", tmp_path / "f", FINETUNE, **values)
    original, scripted = Finetuning.evaluate, (10, 20, 60, 30, 60, 40)
    monkeypatch.setattr(
        Finetuning, "evaluate", lambda self, epoch, last: original(self, epoch, last) | {"top1": scripted[epoch]}
    )
    result = finetune(cfg)
    lines = [json.loads(line) for line in (tmp_path / "f" / "metrics.jsonl").read_text().splitlines()]
    on_val = [line["top1"] for line in lines if "top1" in line]
    assert on_val == [*scripted]
    assert (result["val_top1"], result["best_epoch"]) == (max(on_val), on_val.index(max(on_val)))
    assert (result["val_images"], result["test_images"]) == (12, 12)
    best = checkpoint.load(tmp_path / "f" / "checkpoints" / "best.pt")
    kept = load_trained(tmp_path / "f").network.state_dict()
    assert best["epoch"] == 2
    assert all((kept[key] == value).all() for key, value in best["model"].items())
    without = finetune(tiny_config(tmp_path / "train.beton", tmp_path / "g", FINETUNE, **values | {"data.val": None}))
    assert "val_top1" not in without


def test_the_files_of_a_folders_folds_are_those_of_their_rows(tmp_path, photos, monkeypatch):
    """Tables of their predictions had rows alone. A .txt beside a beton has what a conversion chose, by name."""
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "cache"))
    for k in range(8):
        path = tmp_path / "images" / "ab"[k % 2] / ("line\nbreak.png" if k == 5 else f"{k}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[k][:20, :20]).save(path)
    whole = convert(tmp_path / "images")["train"]
    seen = []
    for k, test in enumerate(([1, 3, 6], [0, 2, 4, 5, 7])):
        fold = tmp_path / f"fold_{k}"
        write_fold(str(whole), fold, np.setdiff1d(range(8), test), np.array(test))
        (fold / "test.txt").write_text("a/chosen.png\n" * len(test))
        files = listed_files(fold / "test.beton")
        for file, image in zip(files, decode_rows(open_beton(fold / "test.beton"), None), strict=True):
            assert np.array_equal(np.asarray(Image.open(file)), image)
        seen += files
    assert sorted(seen) == sorted(str(path) for path in (tmp_path / "images").rglob("*.png"))
    write_subset(whole, [0, 1], tmp_path / "other.beton")
    (tmp_path / "other.txt").write_text("a/chosen.png\nb/chosen.png\n")
    assert listed_files(tmp_path / "other.beton") == []
    write_fold(str(tmp_path / "other.beton"), tmp_path / "fold_0", np.array([0]), np.array([1]))
    assert listed_files(tmp_path / "fold_0" / "test.beton") == []  # not those of before


@pytest.mark.integration
def test_folds_test_every_image_once(tiny_beton, tmp_path, without_pictures):
    cfg = tiny_config(tiny_beton, tmp_path / "cv", FINETUNE, training__epochs=1)
    result = run_folds(cfg, 4)
    assert [fold["test_images"] for fold in result["folds"]] == [16] * 4
    assert [fold["train_images"] for fold in result["folds"]] == [48] * 4
    tops = [fold["top1"] for fold in result["folds"]]
    assert result["top1"] == pytest.approx(np.mean(tops))
    assert result["top1_std"] == pytest.approx(np.std(tops, ddof=1))
    seen = [open_beton(tmp_path / "cv" / f"fold_{k}" / "test.beton") for k in range(1, 5)]
    assert all((np.bincount(beton.label) == 4).all() for beton in seen)  # each class alike
    pixels = {image.tobytes() for beton in seen for image in decode_rows(beton, None)}
    assert len(pixels) == 64
    assert run_folds(cfg, 4) == result  # it resumes, and nothing is left to do
    with pytest.raises(ConfigError, match="the smallest class, 16"):
        run_folds(cfg, 17)
    shown = run_script("finetune.py", "--folds", "two")
    assert "--folds is a number of folds" in shown.stderr
    shown = run_script(
        "finetune.py",
        "--folds=4",
        f"--data={tiny_beton}",
        f"--out={tmp_path / 'cv'}",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT}",
        "--model.image_size=32",
        "--training.epochs=1",
        "--training.batch_size=16",
        "--training.lr=2e-3",
        "--training.warmup_epochs=1",
        "--training.amp=fp32",
        "--training.compile=false",
        "--training.evaluate_every=0",
        "--training.checkpoint_every=1",
    )
    assert f"top-1 {result['top1']:.2f} ± {result['top1_std']:.2f} %" in shown.stdout, shown.stderr
