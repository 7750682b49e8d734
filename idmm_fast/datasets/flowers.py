"""Oxford Flowers-102: 2,040 training (train + val) and 6,149 test photographs of 102 kinds of flowers.

Source: Nilsback and Zisserman. Layout: jpg/image_00001.jpg ..., imagelabels.mat, setid.mat.
"""

from pathlib import Path

from .split import Source, Split, listed

_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
SOURCE = Source(
    _URL,
    102,
    {"train": 2040, "test": 6149},
    "0.3 GB",
    "research use",
    {
        "102flowers.tgz": (_URL + "102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
        "imagelabels.mat": (_URL + "imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
        "setid.mat": (_URL + "setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
    },
    ("jpg", "imagelabels.mat", "setid.mat"),
    (".", "flowers-102"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    from scipy.io import loadmat  # here, since it is slow to import

    labels = loadmat(SOURCE.at(folder, "imagelabels.mat"))["labels"].ravel()
    ids = loadmat(SOURCE.at(folder, "setid.mat"))
    parts = {"train": [*ids["trnid"].ravel(), *ids["valid"].ravel()], "test": [*ids["tstid"].ravel()]}
    classes = [f"class_{c:03d}" for c in range(1, int(labels.max()) + 1)]
    images = SOURCE.at(folder, "jpg")
    return {
        split: listed(
            images,
            [f"image_{n:05d}.jpg" for n in numbers],
            [int(labels[n - 1]) - 1 for n in numbers],
            classes,
            split,
        )
        for split, numbers in parts.items()
    }
