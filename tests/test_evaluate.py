"""Judging features: against scikit-learn, and against what is plain to see."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.neighbors import KNeighborsClassifier

from idmm_fast.beton import open_beton
from idmm_fast.config import build
from idmm_fast.evaluate import knn_accuracy, linear_accuracy
from idmm_fast.evaluate.judge import SCHEMA, judge
from idmm_fast.evaluate.neighbours import images_of
from idmm_fast.loader.whole import decode_rows


@pytest.fixture(scope="module")
def blobs():
    x, y = make_blobs(600, n_features=8, centers=6, cluster_std=4.0, random_state=0)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return x[:400], y[:400], x[400:], y[400:]


def test_knn_is_scikit_learns_with_the_same_weights(blobs):
    """DINO's vote exp(similarity / 0.07) over cosine neighbours."""
    train, train_labels, test, test_labels = blobs
    ours = knn_accuracy(train, train_labels, test, test_labels, chunk=64)
    for k in (10, 20):
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(
            train, train_labels
        )
        assert ours[f"knn{k}"] == pytest.approx(100 * reference.score(test, test_labels), abs=1e-6)
    assert 20 < ours["knn10"] < 100


def test_knn_with_fewer_images_than_neighbours(blobs):
    train, train_labels, test, test_labels = blobs
    assert 0 <= knn_accuracy(train[:5], train_labels[:5], test, test_labels)["knn20"] <= 100


def test_linear_probe_learns_what_is_linear():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(600, 10)) * np.logspace(-3, 3, 10), dtype=torch.float32)
    y = (x[:, 0] / 1e-3 + x[:, 9] / 1e3 > 0).long()
    assert linear_accuracy(x[:400], y[:400], x[400:], y[400:]) > 95
    assert linear_accuracy(x[:400], y[torch.randperm(400)], x[400:], y[400:]) < 70


def test_judge_a_backbone_that_has_learnt_nothing(tiny_beton, tmp_path):
    cfg = build(SCHEMA, {
        "data.train": str(tiny_beton), "data.test": str(tiny_beton), "model.name": "vit_tiny_patch16_224", "model.image_size": 32,
        "model.options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, "logging.run_dir": str(tmp_path),
    })  # fmt: skip
    result = judge(cfg)
    assert set(result) == {"knn10", "knn20", "linear"}
    assert result["linear"] > 60  # colours alone tell the four classes apart
    assert (tmp_path / "neighbours.png").stat().st_size > 10_000


def test_pictures_show_the_rows_asked_for(tiny_beton):
    rows = [5, 3, 60]
    whole = decode_rows(open_beton(tiny_beton), rows)
    for image, wanted in zip(images_of(tiny_beton, rows, 32), whole):
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.5
