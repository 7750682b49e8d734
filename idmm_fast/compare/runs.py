"""The runs of a sweep: all combinations of what is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from .spec import RANDOM, SAME, RunSpec, beton_path, parse_budget


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


def make_runs(axes: SweepAxes, data: Path | str) -> list[RunSpec]:
    """All combinations of `axes`, seed after seed, each once. All images of a dataset as its target are SAME.

    Args:
        axes: What is combined.
        data: Folder of the betons, whose sizes a budget per image needs.

    Raises:
        ConfigError: A budget is not understood.
        FileNotFoundError, BetonError: A beton is missing or damaged.
    """
    from ..beton import open_beton

    names = {*axes.datasets, *axes.targets} - {SAME}
    sizes = {name: len(open_beton(beton_path(data, name, "train"))) for name in names}
    runs = []
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
        pretrained = images or sizes[dataset]
        finetuned = pretrained if target == SAME else sizes[target]
        minutes = 0.0 if method == RANDOM else axes.minutes
        runs.append(
            RunSpec(
                dataset=dataset,
                images=images,
                sampling=sampling if images else "balanced",
                method=method,
                seed=seed,
                budget=0 if method == RANDOM or minutes else parse_budget(axes.budget, pretrained),
                target=target,
                finetune_budget=parse_budget(finetune_budget, finetuned),
                minutes=minutes,
            )
        )
    return list(dict.fromkeys(runs))
