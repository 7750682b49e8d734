"""Describable Textures: 3,760 training (train + val of split 1) and 1,880 test photographs of 47 textures.

Source: Cimpoi et al. Layout: images/CLASS/*.jpg, labels/train1.txt, labels/val1.txt, labels/test1.txt.
"""

from pathlib import Path

from .split import Source, Split, lines, listed

SOURCE = Source(
    "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    47,
    {"train": 3760, "test": 1880},
    "0.6 GB",
    "research use",
    {
        "dtd-r1.0.1.tar.gz": (
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
        )
    },
    ("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"),
    (".", "dtd", "dtd/dtd"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    parts = {
        split: [line for name in names for line in lines(SOURCE.at(folder, f"labels/{name}1.txt"))]
        for split, names in (("train", ("train", "val")), ("test", ("test",)))
    }
    classes = sorted({name.split("/")[0] for part in parts.values() for name in part})
    images = SOURCE.at(folder, "images")
    return {
        split: listed(images, part, [classes.index(name.split("/")[0]) for name in part], classes, split)
        for split, part in parts.items()
    }
