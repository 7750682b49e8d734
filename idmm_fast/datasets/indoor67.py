"""MIT Indoor-67: 5,360 training and 1,340 test photographs of 67 kinds of rooms.

Source: Quattoni and Torralba. Layout: Images/CLASS/*.jpg, TrainImages.txt, TestImages.txt.
"""

from pathlib import Path

from .split import Source, Split, lines, listed

SOURCE = Source(
    "https://web.mit.edu/torralba/www/indoor.html",
    67,
    {"train": 5360, "test": 1340},
    "2.4 GB",
    "research use",
    {
        "indoorCVPR_09.tar": ("http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar", None),
        "TrainImages.txt": ("https://web.mit.edu/torralba/www/TrainImages.txt", None),
        "TestImages.txt": ("https://web.mit.edu/torralba/www/TestImages.txt", None),
    },
    ("Images", "TrainImages.txt", "TestImages.txt"),
    (".", "indoor67", "indoorCVPR_09"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    parts = {
        split: lines(SOURCE.at(folder, name))
        for split, name in (("train", "TrainImages.txt"), ("test", "TestImages.txt"))
    }
    classes = sorted({name.split("/")[0] for part in parts.values() for name in part})
    images = SOURCE.at(folder, "Images")
    return {
        split: listed(images, part, [classes.index(name.split("/")[0]) for name in part], classes, split)
        for split, part in parts.items()
    }
