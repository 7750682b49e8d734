"""Statistics over the records of results.jsonl: which belong together, means, spreads and differences."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .spec import RANDOM, SAME
from .store import Record

Numbers = dict[tuple[int, int], float]  # {(recipe, seed): number}

DISPLAY_NAMES = {
    RANDOM: "trained from scratch",
    "instance_muon": "recommended recipe",
    "instance": "instance discrimination",
    "idmm": "IDMM",
    "simclr": "SimCLR",
    "supcon": "SupCon (uses labels)",
    "moco_v2": "MoCo v2",
    "moco_v3": "MoCo v3",
    "dino": "DINO",
}
WITH_MUON = "_muon"  # what ends the name of a method with what helps the recipe, see compare/equal_time.yaml
MEASURES = {"top1": "fine-tuned, top-1", "knn20": "kNN, k = 20", "linear": "linear probe"}
ROW = ("dataset", "images", "sampling", "method", "budget", "target", "finetune_budget")  # a run without its seed


def is_improved(method: str) -> bool:
    """Whether it is a method that has what helps the recipe, and not the recipe itself."""
    return (
        method not in DISPLAY_NAMES and method.endswith(WITH_MUON) and method.removesuffix(WITH_MUON) in DISPLAY_NAMES
    )


def display_name(method: str, measure: str = "top1") -> str:
    """The method as a table names it; a variant by its own name."""
    if method == RANDOM and measure != "top1":
        return "random weights"
    if is_improved(method):
        return f"{DISPLAY_NAMES[method.removesuffix(WITH_MUON)]}, improved"
    return DISPLAY_NAMES.get(method, method.replace("_", " "))


def sort_methods(methods: Iterable[str]) -> list[str]:
    """The known ones in the order of DISPLAY_NAMES, each with Muon after itself, then the others by name."""
    known = [name for method in DISPLAY_NAMES for name in (method, method + WITH_MUON)]
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def unique(records: Iterable[Record], key: str) -> list[Any]:
    """The different values of a field, in the order in which they come."""
    return list(dict.fromkeys(record[key] for record in records))


def methods_of(records: Iterable[Record], measure: str = "top1") -> dict[str, str]:
    """{method: display name} of the methods in these records, in the order of a table."""
    return {m: display_name(m, measure) for m in sort_methods(record["method"] for record in records)}


def recipe_of(record: Record) -> int:
    """The number of its recipe, see store.RECIPES."""
    return record.get("recipe", 1)


def row_of(record: Record) -> tuple:
    """What records that differ only in the seed have in common; of minutes that were timed again the crops differ."""
    minutes = record.get("minutes")
    return *(record[key] for key in ROW if not (minutes and key == "budget")), *([minutes] if minutes else [])


def newest(records: list[Record]) -> list[Record]:
    """Of runs that differ only in the seed, those of the newest recipe."""
    last: dict[tuple, int] = {}
    for record in records:
        last[row_of(record)] = max(recipe_of(record), last.get(row_of(record), 0))
    return [record for record in records if recipe_of(record) == last[row_of(record)]]


def values(records: Iterable[Record], measure: str, **wanted: Any) -> Numbers:
    """`measure` of the records whose fields are as `wanted`; of several settings the newest."""
    found = [r for r in records if all(r[k] == v for k, v in wanted.items()) and r.get(measure) is not None]
    return {(recipe_of(record), record["seed"]): record[measure] for record in found}


def mean_std(numbers: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; nan for the latter where there is one number."""
    array = np.array(list(numbers), float)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else float("nan")


def differences(found: Numbers, base: Numbers) -> Numbers:
    """`found` less `base`, seed by seed, where both have a number."""
    return {seed: found[seed] - base[seed] for seed in found if seed in base}


def most_common(numbers: Iterable[int]) -> int:
    """The number that occurs most often, the largest of several; 0, which does not count, of none."""
    counted = [n for n in numbers if n]
    return max(sorted(set(counted), reverse=True), key=counted.count) if counted else 0


def with_budget(records: list[Record], budget: str, crops: int) -> list[Record]:
    """The records whose field `budget` is `crops`; training from scratch goes with every length of pretraining."""
    return [record for record in records if record[budget] in (0, crops)]


def by_equal_budget(
    records: list[Record], budget: str, images_of: Callable[[Record], int]
) -> list[tuple[int, str, list[Record]]]:
    """Groups of records that see the same number of crops.

    Args:
        records: What is grouped.
        budget: "budget" or "finetune_budget".
        images_of: The number of images that a record's training has.

    Returns:
        (crops, "of each image" or "in all", records). A group "of each image" is one where several numbers of images
        have that many; a group "in all" likewise, or one with records that are in no group "of each image".
    """
    told: list[Record] = []
    groups = []
    units: dict[str, Callable[[Record], int]] = {
        "of each image": lambda record: round(record[budget] / images_of(record)),
        "in all": lambda record: record[budget],
    }
    for unit, crops in units.items():
        for amount in sorted({crops(record) for record in records if record[budget]}):
            group = [record for record in records if record[budget] and crops(record) == amount]
            is_alone = len({images_of(record) for record in group}) < 2
            if not is_alone or (unit == "in all" and not all(record in told for record in group)):
                groups.append((amount, unit, group))
                told += group
    return groups


def main_records(records: list[Record]) -> list[Record]:
    """What the main table is made of: all images of a dataset, the methods themselves, the most common budgets.

    Both trainings use all images, variants of a method and pretrainings by the minute are left out, and the budgets are
    those that most runs of the dataset have. Of several settings these are the newest, as in `values`.

    Args:
        records: Those of `newest`.
    """
    own = [
        record
        for record in records
        if not record["images"]
        and record["target"] == SAME
        and record["method"] == record["base"]
        and not record.get("minutes")
    ]
    main = []
    for dataset in unique(own, "dataset"):
        mine = [record for record in own if record["dataset"] == dataset]
        for budget in ("budget", "finetune_budget"):
            mine = with_budget(mine, budget, most_common(record[budget] for record in mine))
        main += mine
    return list({(r["dataset"], r["method"], recipe_of(r), r["seed"]): r for r in main}.values())


def main_budgets(records: list[Record]) -> dict[str, tuple[int, int]]:
    """{dataset: (crops of pretraining, crops of fine-tuning)} of the main table."""
    main = main_records(records)

    def budget(dataset: str, key: str) -> int:
        return most_common(record[key] for record in main if record["dataset"] == dataset)

    return {d: (budget(d, "budget"), budget(d, "finetune_budget")) for d in unique(main, "dataset")}
