"""The demo: what pretraining without labels is worth on Fashion-MNIST, over several seeds.

The images are converted once. Each seed pretrains a small ViT on 2,040 of them, by the paper's recipe and by the
recommended one for the same time, and fine-tunes with 200 labels from both and from random weights; kNN evaluates the
frozen features. report.md, report.png and report.json have the figures, settings.json what they were made with,
seconds.json the time.
"""

import json
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread

from .. import datasets
from ..beton import open_beton, write_beton
from ..config import ConfigError, keys, laid_over, load_yaml, make_config, overrides
from ..config.evaluate import SCHEMA as EVALUATE
from ..config.finetune import SCHEMA as FINETUNE
from ..config.pretrain import SCHEMA as PRETRAIN
from ..evaluate.frozen import evaluate_frozen
from ..files import load_or_compute, write_json, write_text
from ..plots.curves import read_metrics
from ..plots.figure import new_figure, save_figure
from ..train import finetuning, pretraining
from ..train.stopwatch import stopwatch

ARMS = {"random": "no pretraining", "idmm": "IDMM pretraining", "recipe": "recommended recipe"}
PRETRAINED = ("idmm", "recipe")
MEASURES = {
    "knn20": "kNN on frozen features, k = 20, {train:,} labels",
    "top1": "fine-tuned on {labelled} labels, top-1",
}
Report = dict[str, Any]
_FREE = ("data.num_workers", "data.cache", "training.device", "training.compile")  # these change no number


def run_demo(
    pretrain_config: Path | str,
    recipe_config: Path | str,
    finetune_config: Path | str,
    folder: Path | str,
    seeds: int,
    arguments: Sequence[str] = (),
) -> Report:
    """Do everything that is not done yet, then write report.md, report.png and report.json.

    Args:
        pretrain_config: A YAML file for pretraining by IDMM.
        recipe_config: A YAML file that is laid over it for the recommended recipe.
        finetune_config: A YAML file for fine-tuning and evaluation.
        folder: Where runs and report go.
        seeds: How many seeds, at least 2.
        arguments: Further --section.key=value, each for whichever part has that key.

    Returns:
        What report.json holds: {"results": {arm: {measure: [a number a seed]}}, ...}.

    Raises:
        ConfigError: No part has a key, a value is wrong, or the folder holds runs with other settings.
        BetonError, DatasetError, LoaderError, WriteError, OSError, FloatingPointError: As the parts raise.
    """
    folder = Path(folder)
    configs = _DemoConfigs((pretrain_config, recipe_config, finetune_config), arguments)
    shared = configs.make("finetune")
    _convert(shared)
    described = _describe({arm: configs.make(arm) for arm in PRETRAINED}, shared)
    resumes = _check_settings(folder / "settings.json", configs.arguments | described)
    results: dict[str, dict[str, list[float]]] = {arm: {measure: [] for measure in MEASURES} for arm in ARMS}
    with stopwatch(folder / "seconds.json", folder, resumes=resumes) as seconds:
        for seed in range(seeds):
            for arm, found in _run_seed(configs, folder, seed).items():
                for measure in MEASURES:
                    results[arm][measure].append(found[measure])
        made = {"machine": _machine(), "results": results, "seeds": seeds, "minutes": round(seconds() / 60, 1)}
        report = described | made
        write_json(folder / "report.json", report)
        write_text(folder / "report.md", _page(report))
        _plot(report, folder)
    return report


def _check_settings(path: Path, settings: dict[str, Any]) -> bool:
    """Write settings.json, or raise ConfigError where runs beside it have others; gives whether there are runs."""
    begun = path.exists() and any(path.parent.glob("*/config.yaml"))  # what failed before a run began binds nobody
    kept = json.loads(path.read_text(encoding="utf-8")) if begun else settings
    both = dict.fromkeys([*kept, *settings])
    for key in sorted(both, key=lambda key: not key.startswith("--")):  # an argument explains what else differs
        was, now = (given.get(key, "left out") for given in (kept, settings))
        if was != now:
            raise ConfigError(
                f"{path.parent} was begun with {key} {was}, not {now}, and what is done there is not done again. "
                f"Give another --out, or delete that folder."
            )
    write_json(path, settings)
    return begun


class _DemoConfigs:
    """The configurations of the demo's parts, with the user's arguments.

    Args:
        files: YAML files: for pretraining, what the recipe lays over it, for fine-tuning and evaluation.
        arguments: As of `run_demo`; the attribute has those that change a number, {"--section.key": value}.
    """

    def __init__(self, files: tuple[Path | str, Path | str, Path | str], arguments: Sequence[str]) -> None:
        pretrain, recipe, finetune = files
        self._parts: dict[str, tuple[dict, list[Path | str]]] = {
            "idmm": (PRETRAIN, [pretrain]),
            "recipe": (PRETRAIN, [pretrain, recipe]),
            "finetune": (FINETUNE, [finetune]),
            "evaluate": (EVALUATE, [finetune]),
        }
        self._known = [key for schema in (PRETRAIN, FINETUNE, EVALUATE) for key in keys(schema)]
        self._given = overrides(self._known, arguments)
        self.arguments = {f"--{key}": value for key, value in self._given.items() if key not in _FREE}

    def make(self, part: str, changes: dict[str, Any] | None = None) -> SimpleNamespace:
        """The configuration of a part: its files, under the user's arguments, under `changes`, to keys that it has."""
        schema, files = self._parts[part]
        values: dict[str, Any] = {}
        for file in files:
            values = laid_over(values, load_yaml(schema, file, self._known))
        known = set(keys(schema))
        later = {k: v for k, v in (self._given | (changes or {})).items() if k in known}
        return make_config(schema, laid_over(values, later))


def _convert(cfg: SimpleNamespace) -> None:
    """Make the betons that are not there."""
    if Path(cfg.data.train).exists() and Path(cfg.data.test).exists():
        return
    for split, content in datasets.load("demo", Path("data/raw/demo")).items():
        path = Path(cfg.data.train).parent / f"demo_{split}.beton"
        written = write_beton(path, content, dataset="demo", name=split)
        print(f"converted: {written.path}, {written.count} photographs")


def _run_seed(configs: _DemoConfigs, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """{arm: figures} of one seed: a pretraining of each kind, one choice of labels, a fine-tuning of each arm."""
    own: dict[str, Any] = {"training.seed": seed, "training.resume": "auto"}
    for arm in PRETRAINED:
        pretrained = _pretrained_folder(folder, arm, seed)
        if not (pretrained / "backbone.safetensors").exists():
            pretraining.pretrain(configs.make(arm, own | {"logging.run_dir": str(pretrained)}))
    found = {}
    for arm, title in ARMS.items():
        run_dir = folder / f"{arm}_{seed}"
        init = str(_pretrained_folder(folder, arm, seed)) if arm in PRETRAINED else None
        own |= {"logging.run_dir": str(run_dir), "model.init": init}
        finetune = configs.make("finetune", own)
        evaluate = configs.make("evaluate", own | {"linear.enabled": False})
        tuned = load_or_compute(run_dir / "result.json", partial(finetuning.finetune, finetune))
        frozen = load_or_compute(run_dir / "frozen.json", partial(evaluate_frozen, evaluate))
        found[arm] = {**tuned, **frozen}
        print(f"seed {seed}, {title}: " + ", ".join(f"{m} {found[arm][m]:.2f} %" for m in MEASURES))
    return found


def _pretrained_folder(folder: Path, arm: str, seed: int) -> Path:
    """The run folder of a pretraining."""
    return folder / f"pretrain_{arm}_{seed}"


def _describe(pretrain: dict[str, SimpleNamespace], finetune: SimpleNamespace) -> Report:
    """Data, model and trainings, for the report. pretrain: the configuration of each pretraining."""
    train = open_beton(finetune.data.train)
    return {
        "train": len(train),
        "test": len(open_beton(finetune.data.test)),
        "labelled": finetune.data.per_class * len(train.classes),
        "model": f"{finetune.model.name} {finetune.model.options}",
        "pretrain": {arm: f"{_training(cfg)}, {_targets(cfg)}" for arm, cfg in pretrain.items()},
        "groups": {arm: len(cfg.crops.groups) for arm, cfg in pretrain.items()},
        "finetune": _training(finetune),
    }


def _machine() -> str:
    """Processor, threads and GPU, for the report; a training may have set the threads."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}"


def _training(cfg: SimpleNamespace) -> str:
    """A training in a few words."""
    training = cfg.training
    length = f"{training.minutes:g} minutes" if training.minutes else f"{training.epochs} epochs"
    optimizer = {"adamw": "AdamW", "muon": "Muon"}[training.optimizer]
    crops = sum(group["count"] for group in getattr(cfg.crops, "groups", [{"count": 1}]))
    return (
        f"{length} at {cfg.model.image_size} pixels, {crops} crop{'s' * (crops > 1)} of an image, batch "
        f"{training.batch_size}, {optimizer}, lr {training.lr:g}"
    )


def _targets(cfg: SimpleNamespace) -> str:
    """What a pretraining mixes and smooths, in a few words."""
    first = cfg.cutmix.from_epoch
    cutmix = f"CutMix{f' from epoch {first} on' if first else ''}" if cfg.cutmix.alpha else "no CutMix"
    smoothing = cfg.training.label_smoothing
    return f"{cutmix}, {f'label smoothing {smoothing:g}' if smoothing else 'no label smoothing'}"


def table(report: Report) -> str:
    """The Markdown table of a report: a row a measure, mean and sample standard deviation over the seeds."""
    arms = [arm for arm in ARMS if arm in report["results"]]
    heads = [ARMS[arms[0]], *(head for arm in arms[1:] for head in (ARMS[arm], "gain"))]
    lines = [
        f"| accuracy on {report['test']:,} test images, % | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for measure, title in MEASURES.items():
        scratch, *pretrained = (np.array(report["results"][arm][measure]) for arm in arms)
        cells = [_mean_std(scratch)]
        for found in pretrained:
            gains = found - scratch
            cells += [_mean_std(found), ("+" if gains.mean() > 0 else "") + _mean_std(gains)]
        lines.append(f"| {title.format(**report)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean_std(values: np.ndarray) -> str:
    """Mean and sample standard deviation."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def _page(report: Report) -> str:
    """report.md."""
    return (
        "# What pretraining without labels is worth\n\n"
        + table(report)
        + f"\nMean and standard deviation over {report['seeds']} seeds. A seed is one pretraining of each\n"
        "kind, one choice of labels, and one fine-tuning from each and from random weights.\n\n"
        "![report](report.png)\n\n"
        f"- Data: {report['train']:,} photographs of clothes (Fashion-MNIST, 10 classes) without labels for\n"
        f"  pretraining; {report['labelled']} of them with labels for fine-tuning; all {report['test']:,} test\n"
        "  photographs for evaluation. No choice was made on them during a run.\n"
        f"- Model: {report['model']}.\n"
        f"- IDMM: {report['pretrain']['idmm']}.\n"
        "  Crops and blur are milder than the paper's, in proportion to the images (rn_configs/demo.yaml); the rest\n"
        "  is as in the paper.\n"
        f"- Recommended recipe, instance discrimination: {report['pretrain']['recipe']}\n"
        "  (rn_configs/methods/instance_muon.yaml).\n"
        f"- Fine-tuning, the same for all: {report['finetune']}.\n"
        "  With pretraining more is computed; what is compared is what the same labels and fine-tuning give.\n"
        f"- Machine: {report['machine']}; {report['minutes']} minutes.\n"
    )


def _plot(report: Report, folder: Path) -> None:
    """report.png: crops, nearest neighbours, loss curves and accuracies."""
    figure = new_figure(16, 11)
    axes = figure.subplot_mosaic([["crops", "neighbours"], ["loss", "bars"]], height_ratios=[1.7, 1])
    pictures = {
        "crops": ("What the network sees, IDMM", _pretrained_folder(folder, "idmm", 0) / "crops.png"),
        "neighbours": ("Nearest neighbours, recipe, found without labels", folder / "recipe_0" / "neighbours.png"),
    }
    for name, (title, path) in pictures.items():
        axes[name].imshow(imread(path))
        axes[name].set_axis_off()
        axes[name].set_title(title)
    _plot_losses(axes["loss"], report, folder)
    _plot_accuracies(axes["bars"], report)
    save_figure(figure, folder / "report.png", 75)


def _plot_losses(axis: Axes, report: Report, folder: Path) -> None:
    """The loss of each pretraining, a curve per seed, and that of guessing."""
    for k, arm in enumerate(PRETRAINED):
        for seed in range(report["seeds"]):
            metrics = read_metrics(_pretrained_folder(folder, arm, seed))
            epochs = np.bincount(metrics["epoch"])
            means = np.bincount(metrics["epoch"], metrics["loss"]) / epochs / report["groups"][arm]
            axis.plot(np.cumsum(epochs) / epochs.sum(), means, f"C{k + 1}", label="" if seed else ARMS[arm])
    guessing = np.log(report["train"])
    axis.axhline(guessing, color="gray", linewidth=0.8, linestyle=":")
    axis.annotate("guessing", (0, guessing), fontsize=8, color="gray", va="bottom")
    axis.set(title="Pretraining", xlabel="part of the training", ylabel="instance loss of a group of crops")
    axis.legend()


def _plot_accuracies(axis: Axes, report: Report) -> None:
    """Bars of mean accuracies with error bars, a point per seed."""
    for k, (arm, title) in enumerate(ARMS.items()):
        values = [np.array(report["results"][arm][measure]) for measure in MEASURES]
        at = np.arange(len(MEASURES)) + 0.27 * (k - (len(ARMS) - 1) / 2)
        means, deviations = [v.mean() for v in values], [v.std(ddof=1) for v in values]
        bars = axis.bar(at, means, 0.25, yerr=deviations, capsize=4, label=title)
        axis.bar_label(bars, fmt="%.1f", padding=2)
        for x, v in zip(at, values):
            axis.plot(np.full(v.size, x), v, "k.", markersize=4)
    axis.set_xticks(np.arange(len(MEASURES)), [title.format(**report) for title in MEASURES.values()], fontsize=9)
    axis.set(title="What that is worth", ylabel="accuracy, %", ylim=(0, 100))
    axis.legend(loc="upper left")
