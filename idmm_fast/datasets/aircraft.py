"""FGVC-Aircraft: 6,667 training (trainval) and 3,333 test photographs of 100 variants of aeroplanes.

Source: Maji et al., arXiv 1306.5151. Layout: data/images/*.jpg, data/variants.txt, data/images_variant_trainval.txt,
data/images_variant_test.txt.
"""

from pathlib import Path

from .split import Source, Split, lines, listed

SOURCE = Source(
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    100,
    {"train": 6667, "test": 3333},
    "2.8 GB",
    "research use",
    {
        "fgvc-aircraft-2013b.tar.gz": (
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            None,
        )
    },
    ("data/images", "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
    (".", "fgvc-aircraft-2013b"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    classes = lines(SOURCE.at(folder, "data/variants.txt"))
    images = SOURCE.at(folder, "data/images")
    result = {}
    for split, name in (("train", "trainval"), ("test", "test")):
        rows = [line.split(" ", 1) for line in lines(SOURCE.at(folder, f"data/images_variant_{name}.txt"))]
        result[split] = listed(
            images, [f"{r[0]}.jpg" for r in rows], [classes.index(r[1]) for r in rows], classes, split
        )
    return result
