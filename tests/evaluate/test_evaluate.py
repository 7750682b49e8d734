"""Evaluation of features: against scikit-learn, and against what is plain to see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import corrupt_row, run_script
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils._python_dispatch import TorchDispatchMode

from idmm_fast.beton import BetonError, open_beton, write_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.beton.subset import write_subset
from idmm_fast.config import ConfigError, make_config
from idmm_fast.config.evaluate import SCHEMA
from idmm_fast.datasets import Split
from idmm_fast.evaluate import EvaluationImages, knn_accuracy, linear, linear_accuracy
from idmm_fast.evaluate.accuracy import top_k
from idmm_fast.evaluate.classes import class_names, match_labels
from idmm_fast.evaluate.frozen import evaluate_frozen
from idmm_fast.evaluate.online import OnlineEvaluation
from idmm_fast.loader import LoaderError
from idmm_fast.models import create_backbone
from idmm_fast.plots.neighbours import load_images
from idmm_fast.runtime.device import resolve_runtime
from idmm_fast.train import finetuning as finetune
from idmm_fast.train import pretraining as pretrain

TINY = {
    "model.name": "vit_tiny_patch16_224",
    "model.image_size": 32,
    "model.options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
}


@pytest.fixture(scope="module")
def blobs():
    x, y = make_blobs(600, n_features=8, centers=6, cluster_std=4.0, random_state=0)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return x[:400], y[:400], x[400:], y[400:]


@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.02, 0.01, 0.001, 1e-6])
@pytest.mark.parametrize("train_chunk", [1000, 33, 7])
def test_knn_is_scikit_learns_with_the_same_weights(blobs, temperature, train_chunk):
    """DINO's vote exp(similarity / temperature) over cosine neighbours, in float64 and divided by the largest."""
    train, train_labels, test, test_labels = blobs
    ours = knn_accuracy(train, train_labels, test, test_labels, temperature=temperature, chunks=(64, train_chunk))
    for k in (10, 20):
        reference = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((d.min(1, keepdims=True) - d) / temperature)
        )
        reference.fit(train.double(), train_labels)
        assert ours[f"knn{k}"] == pytest.approx(100 * reference.score(test.double(), test_labels), abs=1e-6)
    assert 20 < ours["knn10"] < 100


def test_knn_with_fewer_images_than_neighbours(blobs):
    train, train_labels, test, test_labels = blobs
    found = knn_accuracy(train[:5], train_labels[:5], test, test_labels, ks=(5, 20))
    assert found["knn20"] == found["knn5"] > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error(blobs, bad):
    train, train_labels, test, test_labels = blobs
    spoilt = test.clone()
    spoilt[[3, 7], 2] = bad
    with pytest.raises(ValueError, match="the features of 2 of 200 test images are not finite"):
        knn_accuracy(train, train_labels, spoilt, test_labels)


def test_knn_holds_nothing_large():
    """No tensor of all images by all classes, nor of a chunk by all images."""
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest[0] = max(largest[0], tensor.numel())
            return out

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, 8, generator=generator), torch.randint(0, 900, (4000,), generator=generator)
    with Sizes():
        knn_accuracy(x, y, x[:300], y[:300], chunks=(50, 500))
    assert largest[0] <= 50 * 900


def test_linear_probe_learns_what_is_linear():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(600, 10)) * np.logspace(-3, 3, 10), dtype=torch.float32)
    y = (x[:, 0] / 1e-3 + x[:, 9] / 1e3 > 0).long()
    assert linear_accuracy(x[:400], y[:400], x[400:], y[400:]) > 95
    assert linear_accuracy(x[:400], y[torch.randperm(400)], x[400:], y[400:]) < 70


def test_linear_probe_is_scikit_learns_or_none_in_time(blobs, monkeypatch):
    train, train_labels, test, test_labels = blobs
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, train_labels)
    wanted = pytest.approx(100 * reference.score(test, test_labels))
    assert linear_accuracy(train, train_labels, test, test_labels) == wanted
    assert linear_accuracy(train, train_labels, test, test_labels, minutes=0) is None
    iterations = reference[-1].n_iter_.max()
    assert iterations > 3
    times = iter(range(100))  # a second from look to look, so for an iteration
    monkeypatch.setattr(linear.time, "monotonic", lambda: float(next(times)))
    assert linear_accuracy(train, train_labels, test, test_labels, minutes=(iterations - 1) / 60) is None
    assert linear_accuracy(train, train_labels, test, test_labels, minutes=(iterations + 2) / 60) == wanted


@pytest.mark.integration
def test_evaluation_of_a_backbone_that_has_learnt_nothing(tiny_beton, tmp_path):
    values = {**TINY, "data.train": str(tiny_beton), "data.test": str(tiny_beton), "logging.run_dir": str(tmp_path)}
    result = evaluate_frozen(make_config(SCHEMA, values))
    assert set(result) == {"knn10", "knn20", "linear"}
    assert result["linear"] > 60  # colours alone tell the four classes apart
    assert (tmp_path / "neighbours.png").stat().st_size > 10_000
    nearest = {k: v for k, v in result.items() if k != "linear"}
    assert evaluate_frozen(make_config(SCHEMA, {**values, "linear.enabled": False})) == nearest


def arguments(values):
    return [f"--{k}={v}" for k, v in values.items()]


def test_a_linear_probe_that_takes_too_long_is_said(tiny_beton):
    shown = run_script(
        "evaluate.py", *arguments(TINY), "--data", tiny_beton, "--test", tiny_beton, "--linear.max_minutes=0"
    )
    assert shown.returncode == 0
    assert "takes more than 0 minutes, so there is no number" in shown.stdout + shown.stderr
    assert "linear" not in shown.stdout.splitlines()[-1]
    assert "knn20" in shown.stdout


def labelled(path, labels, names):
    """A beton of noise with these labels and names of classes."""
    images = list(np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), np.uint8))
    return write_beton(path, Split(images, labels, names), dataset="test", name="x", mode="raw", quiet=True).path


OTHERS = {
    "others": (
        [0, 1],
        ["a", "x"],
        "have other classes: 'b', 'c' only in the first, 'x' only in the second. Convert both at once",
    ),
    "unlabelled": ([0, -1, -1], ["a", "b", "c"], "2 of 3 images of .*test.beton have no label"),
    "twice": ([0, 1], ["a", "a"], "two classes of the name 'a'"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_labels_that_can_not_be_compared_are_refused(tmp_path, kind):
    """By evaluation, by fine-tuning, and by online evaluation before training begins."""
    labels, names, says = OTHERS[kind]
    train = labelled(tmp_path / "train.beton", [0, 1, 2] * 3, ["a", "b", "c"])
    test = labelled(tmp_path / "test.beton", labels, names)
    values = {**TINY, "data.train": str(train), "data.test": str(test), "logging.run_dir": str(tmp_path / "run")}
    with pytest.raises(BetonError, match=says):
        evaluate_frozen(make_config(SCHEMA, values))
    with pytest.raises(BetonError, match=says):
        finetune.finetune(make_config(finetune.SCHEMA, values))
    with pytest.raises(BetonError, match=says):
        OnlineEvaluation(make_config(pretrain.SCHEMA, {**values, "online_eval.every": 1})).check()
    test.with_suffix(".json").unlink()
    if kind != "unlabelled":  # without names nothing is known
        OnlineEvaluation(make_config(pretrain.SCHEMA, {**values, "online_eval.every": 1})).check()


# (classes of the test file, its labels, these in the numbers of the training file, all classes)
MATCHED = {
    "same": (["a", "b", "c"], [2, 0], [2, 0], ["a", "b", "c"]),
    "gap": (["a", "c"], [0, 1], [0, 2], ["a", "b", "c"]),
    "order": (["c", "b", "a"], [0, 1, 2], [2, 1, 0], ["a", "b", "c"]),
    "more": (["0", "a", "b", "c"], [0, 1, 3], [3, 0, 2], ["a", "b", "c", "0"]),
}


@pytest.mark.parametrize("kind", MATCHED)
def test_classes_are_matched_by_their_names(tmp_path, kind, capsys):
    names, labels, wanted, classes = MATCHED[kind]
    train = open_beton(labelled(tmp_path / "train.beton", [0, 1, 2] * 3, ["a", "b", "c"]))
    test = open_beton(labelled(tmp_path / "test.beton", labels, names))
    assert sorted(match_labels(train, test).tolist()) == sorted(wanted)
    by_name = [names[k] for k in test.label]
    assert [class_names(train, test)[k] for k in match_labels(train, test)] == by_name
    assert class_names(train, test) == classes
    said = capsys.readouterr()
    assert ("1 of 3 images" in said.out + said.err) == (kind == "more")


def test_one_class_is_refused(tmp_path):
    one = labelled(tmp_path / "one.beton", [0] * 5, ["a"])
    values = {**TINY, "data.train": str(one), "data.test": str(one), "logging.run_dir": str(tmp_path / "run")}
    for call in (
        lambda: evaluate_frozen(make_config(SCHEMA, values)),
        lambda: finetune.finetune(make_config(finetune.SCHEMA, values)),
    ):
        with pytest.raises(BetonError, match=r"one class only, 'a'; .* need two .* own: FOLDER/CLASS/$"):
            call()
    assert not (tmp_path / "run").exists()


def test_training_images_without_a_label_are_left_out(tmp_path, capsys):
    """By evaluation, by online evaluation and by fine-tuning: all is as if they were not in the file."""
    labels = np.array([0, -1, 1, 2, -1] * 12)
    train = labelled(tmp_path / "train.beton", labels, ["a", "b", "c"])
    write_subset(train, np.flatnonzero(open_beton(train).label >= 0), tmp_path / "some.beton")
    test = labelled(tmp_path / "test.beton", [0, 1, 2] * 5, ["a", "b", "c"])
    found = {}
    for name in ("train", "some"):
        values = {**TINY, "data.train": str(tmp_path / f"{name}.beton"), "data.test": str(test)}
        in_training = {**values, "logging.run_dir": "x", "online_eval.every": 1}
        online = OnlineEvaluation(make_config(pretrain.SCHEMA, in_training))
        online.check()
        torch.manual_seed(0)
        backbone = create_backbone(TINY["model.name"], 32, 0.0, TINY["model.options"])
        runtime = resolve_runtime(SimpleNamespace(device="cpu", amp="fp32", channels_last=False, compile=False), 0)
        tuning = make_config(finetune.SCHEMA, {**values, "logging.run_dir": "x"})
        found[name] = [
            evaluate_frozen(make_config(SCHEMA, values)),
            online(backbone, runtime),
            sorted(open_beton(values["data.train"]).sums[finetune.Finetuning(tuning).rows].tolist()),
        ]
        said = capsys.readouterr()
        assert ("24 of 60 images of" in said.out + said.err) == (name == "train")
    assert found["train"] == found["some"]
    nobody = labelled(tmp_path / "nobody.beton", [-1] * 5, ["a", "b"])
    with pytest.raises(BetonError, match=r"no image of .*nobody\.beton has a label"):
        match_labels(open_beton(nobody), open_beton(test))


def test_online_evaluation_is_tried_before_training(tmp_path, tiny_beton):
    values = {
        **TINY,
        "data.train": str(tiny_beton),
        "logging.run_dir": "x",
        "online_eval.every": 1,
        "online_eval.linear": True,
    }

    def check(**more):
        OnlineEvaluation(
            make_config(pretrain.SCHEMA, values | {k.replace("__", "."): v for k, v in more.items()})
        ).check()

    state = torch.get_rng_state()
    check(data__test=str(tiny_beton))
    assert torch.equal(torch.get_rng_state(), state)
    check(online_eval__every=0)
    with pytest.raises(ConfigError, match=r"needs data\.test"):
        check()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check(data__test=str(tmp_path / "nowhere.beton"))
    one = labelled(tmp_path / "one.beton", [0] * 5, ["a"])
    with pytest.raises(BetonError, match="two classes"):
        check(data__train=str(one), data__test=str(one))
    with pytest.raises(LoaderError, match="row 0"):
        check(data__test=str(corrupt_row(tiny_beton, tmp_path / "bad.beton", 0, "half")))


@pytest.mark.integration
def test_damaged_images_are_left_out_of_an_evaluation(tiny_beton, tmp_path, capsys):
    """The accuracies are those of a file without them; nothing stands in. The picture shows images that can be read."""
    damaged, path = [0, 7, 63], tiny_beton
    for row in damaged:
        path = corrupt_row(path, tmp_path / f"{row}.beton", row, "half")
    left = np.setdiff1d(np.arange(64), damaged)
    write_subset(tiny_beton, left, tmp_path / "whole.beton")

    def evaluated(test, on_error):
        values = {"data.train": str(tiny_beton), "data.test": str(test), "data.on_error": on_error}
        return evaluate_frozen(make_config(SCHEMA, {**TINY, **values, "logging.run_dir": str(tmp_path)}))

    with pytest.raises(LoaderError, match="row 0 of"):
        evaluated(path, "raise")
    with pytest.warns(UserWarning, match="left out"):
        found = evaluated(path, "replace")
    assert found.pop("images_skipped") == 3
    assert found == pytest.approx(evaluated(tmp_path / "whole.beton", "raise"))
    runtime = resolve_runtime(SimpleNamespace(device="cpu", amp="fp32", channels_last=False, compile=False), 0)
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))

    class Colours(torch.nn.Module):
        def forward(self, images):
            return images.float().mean((2, 3)) @ weights

    def top(test, labels, on_error="raise"):
        images = EvaluationImages(test, 32, 4, on_error=on_error)
        return top_k(Colours(), images, torch.from_numpy(labels), runtime)

    with pytest.warns(UserWarning, match="left out"):
        found = top(path, open_beton(tiny_beton).label, "replace")
    assert found.pop("images_skipped") == 3
    assert found == pytest.approx(top(tmp_path / "whole.beton", open_beton(tmp_path / "whole.beton").label))
    assert f"{path}: 3 of 64 images can't be decoded" in capsys.readouterr().out
    some = corrupt_row(write_subset(tiny_beton, [3], tmp_path / "some.beton").path, tmp_path / "none.beton", 0, "half")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(LoaderError, match="none of the 1 images"):
        top(some, np.array([0]), "replace")


def test_a_checkpoint_that_is_missing_is_named():
    for argv in (["--checkpoint", "runs/nowhere"], ["--model.init=runs/nowhere"]):
        shown = run_script("evaluate.py", *argv)
        assert shown.returncode == 1
        assert "runs/nowhere does not exist" in shown.stderr


def test_pictures_show_the_rows_asked_for(tiny_beton):
    rows = [5, 3, 60]
    whole = decode_rows(open_beton(tiny_beton), rows)
    for image, wanted in zip(load_images(tiny_beton, rows, 32), whole):
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.5
