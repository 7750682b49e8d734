"""Your own images: any tree ROOT/CLASS/*.jpg, or ROOT/train/CLASS/* and ROOT/test/CLASS/* (or val, valid, validation).

A tree without classes, images right under ROOT, makes one split whose images all have label 0, enough for pretraining.
"""

from collections.abc import Sequence
from pathlib import Path

from .split import DatasetError, Split

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _split(root: Path, classes: Sequence[str] | None = None) -> Split:
    """One split, ROOT/CLASS/**; `classes` are those of the training split."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        images = sorted(p for p in root.iterdir() if _is_image(p))
        return Split(images, [0] * len(images), ["all"])
    if loose := sum(_is_image(p) for p in root.iterdir()):
        raise DatasetError(
            f"{root} has {loose} images beside its folders, which are classes. "
            f"Put them into one of their own, or all images right into {root}."
        )
    found = [p.name for p in folders]
    classes = classes or found
    strange = sorted(set(found) - set(classes))
    if strange:
        raise DatasetError(f"{root} has classes that the training split does not: {', '.join(strange[:5])}.")
    images, labels = [], []
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if _is_image(p)):
            images.append(path)
            labels.append(classes.index(folder.name))
    return Split(images, labels, classes)


def load(root: Path) -> dict[str, Split]:
    """The splits of a tree of images.

    Args:
        root: ROOT/CLASS/**, ROOT/SPLIT/CLASS/** or images right under ROOT or ROOT/SPLIT.

    Returns:
        {"train": Split, "test": Split}, or "train" alone.

    Raises:
        DatasetError: There is no such folder, or no image in it, or the test split has classes of its own.
    """
    if not root.is_dir():
        raise DatasetError(
            f"{root} is not a folder. "
            f"Name your tree of images with --root DIR: DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg."
        )
    splits: dict[str, Split] = {}
    for split, aliases in SPLITS.items():
        for alias in aliases:
            if (root / alias).is_dir() and split not in splits:
                splits[split] = _split(root / alias, splits["train"].classes if "train" in splits else None)
    if not splits:
        splits = {"train": _split(root)}
    for split, content in splits.items():
        if not len(content):
            raise DatasetError(
                f"No image was found for the {split} split under {root} (looked for {', '.join(sorted(EXTENSIONS))})."
            )
    return splits
