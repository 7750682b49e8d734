"""Oxford-IIIT Pets: 3,680 training (trainval) and 3,669 test photographs of 37 breeds of cats and dogs.

Source: Parkhi et al. Layout: images/*.jpg, annotations/trainval.txt, annotations/test.txt.
"""

from pathlib import Path

from .split import Source, Split, lines, listed

_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
SOURCE = Source(
    _URL,
    37,
    {"train": 3680, "test": 3669},
    "0.8 GB",
    "CC BY-SA 4.0",
    {
        "images.tar.gz": (_URL + "data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        "annotations.tar.gz": (_URL + "data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
    },
    ("images", "annotations/trainval.txt", "annotations/test.txt"),
    (".", "oxford-iiit-pet"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    rows = {
        split: [line.split() for line in lines(SOURCE.at(folder, f"annotations/{name}.txt")) if line[0] != "#"]
        for split, name in (("train", "trainval"), ("test", "test"))
    }
    breeds = {int(r[1]): r[0].rsplit("_", 1)[0] for part in rows.values() for r in part}
    classes = [breeds[c] for c in sorted(breeds)]
    index = {c: k for k, c in enumerate(sorted(breeds))}
    images = SOURCE.at(folder, "images")
    return {
        split: listed(images, [f"{r[0]}.jpg" for r in part], [index[int(r[1])] for r in part], classes, split)
        for split, part in rows.items()
    }
