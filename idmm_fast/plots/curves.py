"""Curves of a run, from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .figure import new_figure, save_figure


def read_metrics(folder: str | Path) -> dict[str, np.ndarray]:
    """Read metrics.jsonl of a run folder as {key: array}: its lines with a loss, and the keys that all these have."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    shared = [key for key in steps[0] if all(key in line for line in steps)] if steps else []  # not evaluations' keys
    return {key: np.array([line[key] for line in steps]) for key in shared}


def plot_curves(folder: str | Path) -> None:
    """Write curves.png into the run folder: loss, learning rate, throughput and waiting for data, over epochs."""
    metrics = read_metrics(folder)
    if not metrics:
        return
    steps_per_epoch = np.bincount(metrics["epoch"]).max()
    epochs = metrics["step"] / steps_per_epoch
    figure = new_figure(11, 3)
    loss, lr, throughput = figure.subplots(1, 3)
    loss.plot(epochs, metrics["loss"], linewidth=0.6, alpha=0.4, color="tab:blue")
    means = np.bincount(metrics["epoch"], metrics["loss"]) / np.maximum(np.bincount(metrics["epoch"]), 1)
    seen = np.unique(metrics["epoch"])
    loss.plot(seen + 0.5, means[seen], color="tab:blue")
    loss.set_ylabel("loss (thin: a step,\nthick: an epoch's mean)")
    lr.plot(epochs, metrics["lr"], color="tab:green")
    lr.set_ylabel("learning rate")
    throughput.plot(epochs, metrics["images_per_s"], color="tab:gray")
    throughput.set_ylabel("images/s")
    throughput.set_ylim(bottom=0)
    data_wait = throughput.twinx()
    data_wait.plot(epochs, 100 * metrics["data_wait"], color="tab:red", linewidth=0.8)
    data_wait.set_ylabel("waiting for data, %", color="tab:red")
    data_wait.set_ylim(0, 100)
    for axis in (loss, lr, throughput):
        axis.set_xlabel("epoch")
    save_figure(figure, Path(folder) / "curves.png")
