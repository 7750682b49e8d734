"""What a run's metrics are read as."""

import json

from idmm_fast.plots.curves import plot_curves, read_metrics


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
