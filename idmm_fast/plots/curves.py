"""Curves of a run, from its metrics.jsonl."""

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def read_metrics(folder):
    """metrics.jsonl as {key: array}, over the lines that have the key `loss`."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {key: np.array([line[key] for line in steps]) for key in steps[0]} if steps else {}


def plot_curves(folder):
    """Write curves.png into the run folder: loss, learning rate, throughput and waiting, over epochs."""
    metrics = read_metrics(folder)
    if not metrics:
        return
    per_epoch = np.bincount(metrics["epoch"]).max()
    epochs = metrics["step"] / per_epoch
    figure = Figure(figsize=(11, 3), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, speed = figure.subplots(1, 3)
    loss.plot(epochs, metrics["loss"], linewidth=0.6, alpha=0.4, color="tab:blue")
    means = np.bincount(metrics["epoch"], metrics["loss"]) / np.maximum(np.bincount(metrics["epoch"]), 1)
    seen = np.unique(metrics["epoch"])
    loss.plot(seen + 0.5, means[seen], color="tab:blue")
    loss.set_ylabel("loss (thin: a step, thick: an epoch's mean)")
    rate.plot(epochs, metrics["lr"], color="tab:green")
    rate.set_ylabel("learning rate")
    speed.plot(epochs, metrics["images_per_s"], color="tab:gray")
    speed.set_ylabel("images/s")
    speed.set_ylim(bottom=0)
    wait = speed.twinx()
    wait.plot(epochs, 100 * metrics["data_wait"], color="tab:red", linewidth=0.8)
    wait.set_ylabel("waiting for data, %", color="tab:red")
    wait.set_ylim(0, 100)
    for axis in (loss, rate, speed):
        axis.set_xlabel("epoch")
    figure.savefig(Path(folder) / "curves.png", dpi=110)
