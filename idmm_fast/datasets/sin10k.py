"""SIN-10k: 10 random training photographs of each class of ImageNet, 10,000 in all (--per-class, --seed).

Source: Cao, Yu, Wu, arXiv 2201.10728. Needs ImageNet's files.
"""

from dataclasses import replace
from pathlib import Path

from . import imagenet
from .split import Split

SOURCE = replace(
    imagenet.SOURCE,
    counts={"train": 10000},
    markers=("train",),
    files={"ILSVRC2012_img_train.tar": imagenet.SOURCE.files["ILSVRC2012_img_train.tar"]},
)
BASE = "imagenet"  # whose raw files these are
PER_CLASS = 10
prepare = imagenet.prepare


def read(folder: Path) -> dict[str, Split]:
    """ImageNet's training images under `folder`; the sample is drawn by `load`."""
    return {"train": imagenet.by_class(SOURCE.at(folder, "train"))}
