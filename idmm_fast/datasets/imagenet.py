"""ImageNet-1k: 1,281,167 training and 50,000 validation photographs of 1,000 classes.

Source: Russakovsky et al. The validation split is the test split here. Layout: train/WNID/*.JPEG, and val/WNID/*.JPEG,
or val/*.JPEG with the development kit's labels; or the three official archives, which are unpacked.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .fetch import unpack
from .split import DatasetError, Source, Split

SOURCE = Source(
    "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
    1000,
    {"train": 1281167, "test": 50000},
    "155 GB",
    "research use, by request",
    {
        "ILSVRC2012_img_train.tar": (None, "1d675b47d978889d74fa0da5fadfb00e"),
        "ILSVRC2012_img_val.tar": (None, "29b22e2961454d5413ddabcf34fc5622"),
        "ILSVRC2012_devkit_t12.tar.gz": (None, "fa75699e90414af021442c21a62c3abf"),
    },
    ("train", "val"),
    (".", "imagenet"),
)
DEVKIT = "ILSVRC2012_devkit_t12"


def prepare(root: Path) -> None:
    """Unpack the official archives that are under `root` to the layout above: one has an archive a class, one is flat.

    Raises:
        DatasetError: An archive can't be unpacked.
    """
    train, val = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
    if train.is_file() and not SOURCE.at(root, "train").exists():
        draft = root / "train.unpacking"
        draft.mkdir(exist_ok=True)
        if not (draft / ".classes").exists():
            unpack(train, draft)
            (draft / ".classes").touch()
        for archive in tqdm(sorted(draft.glob("*.tar")), desc="classes", disable=None):
            (draft / archive.stem).mkdir(exist_ok=True)
            unpack(archive, draft / archive.stem)
            archive.unlink()
        (draft / ".classes").unlink()
        draft.replace(root / "train")
    if val.is_file() and not SOURCE.at(root, "val").exists():
        draft = root / "val.unpacking"
        draft.mkdir(exist_ok=True)
        unpack(val, draft)
        draft.replace(root / "val")
    if (root / f"{DEVKIT}.tar.gz").is_file() and not (root / DEVKIT).exists():
        unpack(root / f"{DEVKIT}.tar.gz", root)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpeg", ".jpg"))


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    train, val = SOURCE.at(folder, "train"), SOURCE.at(folder, "val")
    result = {"train": by_class(train)}
    classes = result["train"].classes
    if any(p.is_dir() for p in val.iterdir()):
        result["test"] = by_class(val, classes)
        return result
    kit = SOURCE.at(folder, DEVKIT) / "data"
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.exists():
        raise DatasetError(
            f"{val} has no class folders, so {truth} is needed to know its labels: "
            f"unpack {DEVKIT}.tar.gz from {SOURCE.address} into {folder}."
        )
    from scipy.io import loadmat  # here, since it is slow to import

    synsets = loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
    wnid = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
    labels = [classes.index(wnid[int(line)]) for line in truth.read_text(encoding="utf-8").split()]
    images = _images(val)
    if len(images) != len(labels):
        raise DatasetError(f"{val} holds {len(images)} images, and {truth.name} names {len(labels)}.")
    result["test"] = Split(images, labels, classes)
    return result


def by_class(folder: Path, classes: Sequence[str] | None = None) -> Split:
    """The images FOLDER/CLASS/*.JPEG of these classes, or of all there are. Raises DatasetError where there is none."""
    if classes is None:
        classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    images: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(folder / name) if (folder / name).is_dir() else []
        images += found
        labels += [label] * len(found)
    if not images:
        raise DatasetError(
            f"{folder} has no images in class folders (n01440764/*.JPEG, ...). Name the folder that has train/ and "
            f"val/ with --root."
        )
    return Split(images, labels, classes)
