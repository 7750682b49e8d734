"""CUB-200-2011: 5,994 training and 5,794 test photographs of 200 kinds of birds.

Source: Wah et al. Layout: images/CLASS/*.jpg, images.txt, image_class_labels.txt, train_test_split.txt, classes.txt.
"""

from pathlib import Path

from .split import Source, Split, lines, listed

SOURCE = Source(
    "https://www.vision.caltech.edu/datasets/cub_200_2011/",
    200,
    {"train": 5994, "test": 5794},
    "1.2 GB",
    "research use",
    {
        "CUB_200_2011.tgz": (
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        )
    },
    ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
    (".", "CUB_200_2011"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""

    def table(name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in lines(SOURCE.at(folder, name)))

    paths, labels, training, classes = map(
        table, ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    index = {c: k for k, c in enumerate(sorted(classes, key=int))}
    names = [classes[c].strip().split(".", 1)[-1] for c in sorted(classes, key=int)]
    images = SOURCE.at(folder, "images")
    result = {}
    for split, wanted in (("train", "1"), ("test", "0")):
        ids = [i for i in sorted(paths, key=int) if training[i].strip() == wanted]
        result[split] = listed(
            images, [paths[i].strip() for i in ids], [index[labels[i].strip()] for i in ids], names, split
        )
    return result
