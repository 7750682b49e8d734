"""Oxford-IIIT Pets: 3,680 training (trainval) and 3,669 test photographs, 37 breeds of cats and dogs.

Source: Parkhi et al., https://www.robots.ox.ac.uk/~vgg/data/pets/. Layout: images/*.jpg, annotations/trainval.txt,
annotations/test.txt, under ROOT or ROOT/oxford-iiit-pet (torchvision's place).
"""

from .split import DatasetError, Split

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
COUNTS = {"train": 3680, "test": 3669}
FILES = {"train": "trainval.txt", "test": "test.txt"}


def load(root):
    folder = next((f for f in (root, root / "oxford-iiit-pet") if (f / "annotations" / "trainval.txt").exists()), None)
    if folder is None:
        from torchvision.datasets import OxfordIIITPet

        try:
            OxfordIIITPet(str(root), split="trainval", download=True)
        except (RuntimeError, OSError) as error:
            raise DatasetError(
                f"Oxford-IIIT Pets is not under {root} and could not be downloaded ({error}). Get images.tar.gz and annotations.tar.gz from "
                f"{ADDRESS}, unpack them side by side, and name the folder that holds images/ and annotations/ with --root."
            ) from None
        folder = root / "oxford-iiit-pet"
    rows = {split: [line.split() for line in (folder / "annotations" / name).read_text().splitlines() if line.strip() and line[0] != "#"]
            for split, name in FILES.items()}  # fmt: skip
    breeds = {int(r[1]): r[0].rsplit("_", 1)[0] for part in rows.values() for r in part}
    classes = [breeds[c] for c in sorted(breeds)]
    index = {c: k for k, c in enumerate(sorted(breeds))}
    splits = {}
    for split, part in rows.items():
        images = [folder / "images" / f"{r[0]}.jpg" for r in part]
        missing = [p.name for p in images if not p.exists()]
        if missing:
            raise DatasetError(
                f"{len(missing)} {split} images are missing under {folder / 'images'}, first {missing[0]}."
            )
        splits[split] = Split(images, [index[int(r[1])] for r in part], classes)
    return splits
