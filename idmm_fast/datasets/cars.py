"""Stanford Cars: 8,144 training and 8,041 test photographs of 196 models of cars.

Source: Krause et al. Layout: cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat, devkit/cars_train_annos.mat and
cars_test_annos_withlabels.mat (beside the folders or in devkit/).
"""

from pathlib import Path

from .split import DatasetError, Source, Split, listed

SOURCE = Source(
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    196,
    {"train": 8144, "test": 8041},
    "1.9 GB",
    "research use",
    # The official server no longer has them; whoever has the files names them with --root.
    {
        "cars_train.tgz": (None, "065e5b463ae28d29e77c1b4b166cfe61"),
        "cars_test.tgz": (None, "4ce7ebf6a94d07f1952d94dd34c4d501"),
        "car_devkit.tgz": (None, "c3b158d763b6e2245038c8ad08e45376"),
        "cars_test_annos_withlabels.mat": (None, "b0a2b23655a3edd16d84508592a98d10"),
    },
    ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
    (".", "stanford_cars", "car_devkit"),
)


def read(folder: Path) -> dict[str, Split]:
    """The official splits from the raw files under `folder`. Raises DatasetError, ValueError or OSError."""
    from scipy.io import loadmat  # here, since it is slow to import

    classes = [str(n) for n in loadmat(SOURCE.at(folder, "devkit/cars_meta.mat"), squeeze_me=True)["class_names"]]
    places = [SOURCE.at(folder, f"{inside}cars_test_annos_withlabels.mat") for inside in ("", "devkit/")]
    test = next((path for path in places if path.exists()), None)
    if test is None:
        raise DatasetError(
            f"cars_test_annos_withlabels.mat is missing under {folder}; without it the test images have no labels. "
            f"See {SOURCE.address}."
        )
    annotations = {"train": SOURCE.at(folder, "devkit/cars_train_annos.mat"), "test": test}
    result = {}
    for split, path in annotations.items():
        rows = loadmat(path)["annotations"].ravel()
        names, labels = [str(r["fname"].item()) for r in rows], [int(r["class"].item()) - 1 for r in rows]
        result[split] = listed(SOURCE.at(folder, f"cars_{split}"), names, labels, classes, split)
    return result
