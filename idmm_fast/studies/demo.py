"""The demo: convert, pretrain, fine-tune and judge over several seeds, and a report of what it bought."""

import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from .. import config, datasets
from ..beton import open_beton, write_beton
from ..config import evaluate as evaluate_config
from ..config import keys, load_yaml, make_config
from ..evaluate import frozen as judging
from ..files import load_or_compute
from ..plots.curves import read_metrics
from ..train import finetuning, pretraining

ARMS = {"random": "random initialisation", "idmm": "IDMM, no labels"}
MEASURES = {
    "knn20": "kNN on frozen features, k = 20, {train:,} labels",
    "top1": "fine-tuned on {labelled} labels, top-1",
}


def run_demo(pretrain_config, finetune_config, folder, seeds, overrides=()):
    """Do everything that is not done yet under `folder`, then write report.md, report.png and report.json there.

    The configs are YAML files; `overrides` are further --section.key=value arguments, each for whichever of the two has that key. Returns the report's
    content: {"results": {arm: {measure: [a number a seed]}}, ...}. Raises ConfigError, and what the parts raise.
    """
    folder = Path(folder)
    began = time.time()

    everything = [key for module in (pretraining, finetuning, evaluate_config) for key in keys(module.SCHEMA)]
    given = config.overrides(everything, overrides)

    def settings(module, file, changes=None):
        fitting = {key: value for key, value in given.items() if key in keys(module.SCHEMA)}
        return make_config(module.SCHEMA, load_yaml(module.SCHEMA, file, everything) | fitting | (changes or {}))

    shared = settings(finetuning, finetune_config)
    data = Path(shared.data.train).parent
    if not (Path(shared.data.train).exists() and Path(shared.data.test).exists()):
        for split, content in datasets.load("demo", Path("data/raw/demo")).items():
            written = write_beton(data / f"demo_{split}.beton", content, dataset="demo", name=split)
            print(f"converted: {written.path}, {written.count} photographs")
    results = {arm: {m: [] for m in MEASURES} for arm in ARMS}
    for seed in range(seeds):
        pretrained = folder / f"pretrain_{seed}"
        own = {"training.seed": seed, "training.resume": "auto"}
        cfg = settings(pretraining, pretrain_config, {**own, "logging.run_dir": str(pretrained)})
        if not (pretrained / "backbone.safetensors").exists():
            pretraining.pretrain(cfg)
        for arm in ARMS:
            place = folder / f"{arm}_{seed}"
            own |= {"logging.run_dir": str(place), "model.init": str(pretrained) if arm == "idmm" else None}
            cfg = settings(finetuning, finetune_config, own)
            tuned = load_or_compute(place / "result.json", lambda cfg=cfg: finetuning.finetune(cfg))
            fitting = {key: value for key, value in own.items() if key in keys(evaluate_config.SCHEMA)}
            cfg = settings(evaluate_config, finetune_config, fitting | {"linear.enabled": False})
            judged = load_or_compute(place / "judged.json", lambda cfg=cfg: judging.evaluate_frozen(cfg))
            for measure in MEASURES:
                results[arm][measure].append({**tuned, **judged}[measure])
            print(f"seed {seed}, {ARMS[arm]}: " + ", ".join(f"{m} {results[arm][m][-1]:.2f} %" for m in MEASURES))
    cfg = settings(pretraining, pretrain_config)
    report = {
        "results": results,
        "train": len(open_beton(shared.data.train)),
        "test": len(open_beton(shared.data.test)),
        "labelled": shared.data.per_class * len(open_beton(shared.data.train).classes),
        "seeds": seeds,
        "model": f"{cfg.model.name} {cfg.model.options}",
        "pretrain": f"{cfg.training.epochs} epochs at {cfg.model.image_size} pixels, batch {cfg.training.batch_size}, lr {cfg.training.lr:g}",
        "finetune": f"{shared.training.epochs} epochs at {shared.model.image_size} pixels, batch {shared.training.batch_size}, "
        f"lr {shared.training.lr:g}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "minutes": round((time.time() - began) / 60, 1),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(_page(report), encoding="utf-8")
    _picture(report, folder)
    return report


def table(report):
    """The Markdown table of a report: a row a measure, mean and sample standard deviation over the seeds."""
    lines = [
        "| accuracy on {test:,} test images, % | {0} | {1} | gain |".format(*ARMS.values(), test=report["test"]),
        "|---|---|---|---|",
    ]
    for measure, title in MEASURES.items():
        values = [np.array(report["results"][arm][measure]) for arm in ARMS]
        gains = values[1] - values[0]
        cells = [f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for v in (*values, gains)]
        lines.append(
            f"| {title.format(**report)} | {cells[0]} | {cells[1]} | {'+' if gains.mean() > 0 else ''}{cells[2]} |"
        )
    return "\n".join(lines) + "\n"


def _page(report):
    return (
        "# What pretraining without labels bought\n\n"
        + table(report)
        + f"\nMean and standard deviation over {report['seeds']} seeds; a seed is one pretraining, one choice of labels, and one fine-tuning of each arm.\n\n"
        "![report](report.png)\n\n"
        f"- Data: {report['train']:,} photographs of clothes (Fashion-MNIST, 10 classes) without labels for pretraining; {report['labelled']} of them\n"
        f"  with labels for fine-tuning; all {report['test']:,} test photographs for judging, which nothing was chosen by during a run.\n"
        f"- Model: {report['model']}.\n"
        f"- Pretraining: {report['pretrain']}; crops and blur milder than the paper's, in proportion (rn_configs/demo.yaml); all else as in the paper.\n"
        f"- Fine-tuning, the same for both arms and tuned for neither: {report['finetune']}. The arm that was pretrained has had\n"
        "  more computing; what is compared is what the same labels and the same fine-tuning give.\n"
        f"- Machine: {report['machine']}; {report['minutes']} minutes.\n"
    )


def _picture(report, folder):
    figure = Figure(figsize=(16, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["crops", "neighbours"], ["loss", "bars"]], height_ratios=[1.7, 1])
    for name, title, path in (
        ("crops", "What the network sees", folder / "pretrain_0" / "crops.png"),
        ("neighbours", "What it finds alike, having seen no label", folder / "idmm_0" / "neighbours.png"),
    ):
        axes[name].imshow(imread(path))
        axes[name].set_axis_off()
        axes[name].set_title(title)
    for seed in range(report["seeds"]):
        metrics = read_metrics(folder / f"pretrain_{seed}")
        means = np.bincount(metrics["epoch"], metrics["loss"]) / np.bincount(metrics["epoch"])
        axes["loss"].plot(np.arange(1, means.size + 1), means, label=f"seed {seed}")
    axes["loss"].axhline(2 * np.log(report["train"]), color="gray", linewidth=0.8, linestyle=":")
    axes["loss"].annotate("guessing", (1, 2 * np.log(report["train"])), fontsize=8, color="gray", va="bottom")
    axes["loss"].set(title="Pretraining", xlabel="epoch", ylabel="instance loss, both groups")
    axes["loss"].legend()
    for k, arm in enumerate(ARMS):
        values = [np.array(report["results"][arm][m]) for m in MEASURES]
        at = np.arange(len(MEASURES)) + 0.36 * (k - 0.5)
        bars = axes["bars"].bar(
            at, [v.mean() for v in values], 0.34, yerr=[v.std(ddof=1) for v in values], capsize=4, label=ARMS[arm]
        )
        axes["bars"].bar_label(bars, fmt="%.1f", padding=2)
        for x, v in zip(at, values):
            axes["bars"].plot(np.full(v.size, x), v, "k.", markersize=4)
    axes["bars"].set_xticks(np.arange(len(MEASURES)), [t.format(**report) for t in MEASURES.values()], fontsize=9)
    axes["bars"].set(title="What that is worth", ylabel="accuracy, %", ylim=(0, 100))
    axes["bars"].legend(loc="upper left")
    figure.savefig(folder / "report.png", dpi=75)
