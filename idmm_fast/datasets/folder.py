"""Your own images: any tree ROOT/CLASS/*.jpg, or ROOT/train/CLASS/* and ROOT/test/CLASS/* (val, valid, validation also count).

A tree without classes, images right under ROOT, makes one split whose images all have label 0, enough for pretraining.
"""

from .split import DatasetError, Split

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


def _is_image(path):
    return path.is_file() and path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _split(root, classes=None):
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        images = sorted(p for p in root.iterdir() if _is_image(p))
        return Split(images, [0] * len(images), ["all"])
    if loose := sum(_is_image(p) for p in root.iterdir()):
        raise DatasetError(
            f"{root} has {loose} images beside its folders, which are classes. Put them into one of their own, or all images right into {root}."
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


def load(root):
    if not root.is_dir():
        raise DatasetError(
            f"{root} is not a folder. Name your tree of images with --root DIR: DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg."
        )
    splits = {}
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
