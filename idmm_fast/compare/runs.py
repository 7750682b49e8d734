"""The runs of a sweep: all combinations of what is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from .spec import RANDOM, SAME, RunSpec, SweepConfig, parse_budget
from .subsets import DatasetFiles, open_cached


@dataclass(frozen=True)
class SweepAxes:
    """The values whose combinations make the runs of a sweep.

    Fields as those of RunSpec; budgets are texts that `parse_budget` reads. With `minutes` the budget of pretraining
    does not count.
    """

    datasets: Sequence[str]
    methods: Sequence[str]
    images: Sequence[int] = (0,)
    sampling: Sequence[str] = ("balanced",)
    seeds: Sequence[int] = (0,)
    targets: Sequence[str] = (SAME,)
    budget: str = "400000"
    finetune_budget: Sequence[str] = ("100000",)
    minutes: float = 0.0


def make_runs(axes: SweepAxes, config: SweepConfig, data: Path | str) -> list[RunSpec]:
    """All combinations of `axes`, seed after seed, each once. All images of a dataset as its target are SAME.

    Args:
        axes: What is combined.
        config: The sweep file, which says how many images a fine-tuning takes.
        data: Folder of the betons, whose sizes a budget per image needs.

    Raises:
        ConfigError: A budget is not understood, or one per image is of images that are not there.
        FileNotFoundError, BetonError: A beton is missing or damaged.
    """
    files, runs = DatasetFiles(data, data), []
    names = {*axes.datasets, *axes.targets} - {SAME}
    sizes = {name: len(open_cached(files.path(name, "train"))) for name in names}
    for seed, dataset, images, sampling, method, target, finetune_budget in product(
        axes.seeds,
        axes.datasets,
        axes.images,
        axes.sampling,
        axes.methods,
        axes.targets,
        axes.finetune_budget,
    ):
        if target == dataset and not images:
            target = SAME
        minutes = 0.0 if method == RANDOM else axes.minutes
        run = RunSpec(
            dataset=dataset,
            images=images,
            sampling=sampling if images else "balanced",
            method=method,
            seed=seed,
            budget=0 if method == RANDOM or minutes else parse_budget(axes.budget, images or sizes[dataset]),
            target=target,
            finetune_budget=0,
            minutes=minutes,
        )
        each = finetune_budget.endswith("x")
        tuned = files.finetuned_images(run, config) if each else 1
        runs.append(replace(run, finetune_budget=parse_budget(finetune_budget, tuned)))
    return list(dict.fromkeys(runs))


def off_budget(run: RunSpec, config: SweepConfig, files: DatasetFiles) -> list[str]:
    """Sentences on the trainings of a run whose whole epochs are more than a tenth off their budget.

    Args:
        run: With its budgets.
        config: The sweep file.
        files: The betons.
    """
    dataset, target, _ = files.of(run)
    tuned = files.finetuned_images(run, config)
    finetune = config.finetune_config(run, ("x", "x"), tuned, None, "x")
    trainings = [(f"fine-tuning on {target}", finetune.training.epochs, tuned, run.finetune_budget)]
    images = run.images or len(open_cached(dataset))
    pretrain = config.pretrain_config(run, "x", images, "x")
    if pretrain is not None:
        each = images * sum(group["count"] for group in pretrain.crops.groups)
        trainings.append((f"{run.method} on {dataset}", pretrain.training.epochs, each, run.budget))
    return [
        f"{what}: {epochs * each:,} crops instead of {budget:,}, since an epoch has {each:,}"
        for what, epochs, each, budget in trainings
        if abs(epochs * each - budget) > 0.1 * budget
    ]
