"""What a run's metrics are read as."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from idmm_fast.plots.classification import plot_confusion
from idmm_fast.plots.curves import plot_curves, read_metrics
from idmm_fast.plots.figure import new_figure, save_figure


def test_metrics_are_those_that_all_steps_have(tmp_path):
    """A step that ends an epoch of one step has its evaluation too, the last of a dry run has not; skipped steps."""
    step = {"epoch": 0, "lr": 0.1, "images_per_s": 9.0, "data_wait": 0.0}
    lines = [
        {"step": 0, "loss": 3.0, "top1": 50.0} | step,
        {"step": 1, "nonfinite_steps": 1} | step,
        {"step": 2, "loss": 2.0} | step,
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    metrics = read_metrics(tmp_path)
    assert set(metrics) == {"step", "loss", *step}
    assert metrics["loss"].tolist() == [3.0, 2.0]
    plot_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    metrics = {"step": 0, "epoch": 0, "loss": 3.0, "lr": 0.1, "images_per_s": 9.0, "data_wait": 0.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics))
    save_figure(new_figure(2, 1), tmp_path / "curves.png", 50)
    assert Image.open(tmp_path / "curves.png").size == (100, 50)

    def savefig(self, path, **options):
        Path(path).write_bytes(b"half of")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="full"):
        plot_curves(tmp_path)
    with pytest.raises(OSError, match="full"):
        plot_confusion(np.eye(2), ["a", "b"], tmp_path / "confusion.png")
    assert Image.open(tmp_path / "curves.png").size == (100, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]
