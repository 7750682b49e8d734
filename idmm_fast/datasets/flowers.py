"""Oxford Flowers-102: 2,040 training (train + val) and 6,149 test photographs, 102 classes.

Source: Nilsback and Zisserman, https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. Layout: jpg/image_00001.jpg ...,
imagelabels.mat, setid.mat, under ROOT or ROOT/flowers-102 (torchvision's place).
"""

from .split import DatasetError, Split

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
COUNTS = {"train": 2040, "test": 6149}


def load(root):
    from scipy.io import loadmat

    folder = next((f for f in (root, root / "flowers-102") if (f / "setid.mat").exists()), None)
    if folder is None:
        from torchvision.datasets import Flowers102

        try:
            Flowers102(str(root), split="train", download=True)
        except (RuntimeError, OSError) as error:
            raise DatasetError(
                f"Flowers-102 is not under {root} and could not be downloaded ({error}). Get 102flowers.tgz, imagelabels.mat and "
                f"setid.mat from {ADDRESS}, unpack them, and name the folder that holds jpg/, imagelabels.mat and setid.mat with --root."
            ) from None
        folder = root / "flowers-102"
    labels = loadmat(folder / "imagelabels.mat")["labels"].ravel()
    ids = loadmat(folder / "setid.mat")
    parts = {"train": [*ids["trnid"].ravel(), *ids["valid"].ravel()], "test": [*ids["tstid"].ravel()]}
    classes = [f"class_{c:03d}" for c in range(1, int(labels.max()) + 1)]
    splits = {}
    for split, numbers in parts.items():
        images = [folder / "jpg" / f"image_{n:05d}.jpg" for n in numbers]
        missing = [p.name for p in images if not p.exists()]
        if missing:
            raise DatasetError(f"{len(missing)} {split} images are missing under {folder / 'jpg'}, first {missing[0]}.")
        splits[split] = Split(images, [int(labels[n - 1]) - 1 for n in numbers], classes)
    return splits
