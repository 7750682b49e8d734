"""Folders of images as people have them: every layout with what is read from it, and what is refused."""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import run_script
from PIL import Image, ImageFile, features

from idmm_fast import datasets
from idmm_fast.beton import open_beton
from idmm_fast.beton.encode import read_rgb
from idmm_fast.datasets import DatasetError
from idmm_fast.datasets.image_files import image_endings, image_files, natural_order, openable_formats

LATIN = os.fsdecode(b"caf\xe9")
KINDS = {".jpg": "JPEG"} | ({".avif": "AVIF"} if features.check("avif") else {})


def plant(root, *files):
    """Small images under `root`, PNGs unless the ending is known; "A -> B": A is a symbolic link to B."""
    for k, name in enumerate(files):
        name, _, target = name.partition(" -> ")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        else:
            Image.new("RGB", (9, 8), (k, 0, 0)).save(path, KINDS.get(path.suffix, "PNG"))


def read(root):
    """{split: {file below root: class, None for no label}}"""
    return {
        name: {
            str(Path(image).relative_to(root)): split.classes[label] if label >= 0 else None
            for image, label in zip(split.images, split.labels)
        }
        for name, split in datasets.load("folder", root).items()
    }


LAYOUTS = {
    "classes": (["a/1.jpg", "b/1.jpg"], {"train": {"a/1.jpg": "a", "b/1.jpg": "b"}}),
    "flat": (["1.jpg", "2.jpg"], {"train": {"1.jpg": "all", "2.jpg": "all"}}),
    "capitals": (
        ["Train/a/1.jpg", "Train/b/1.jpg", "TEST/b/1.jpg"],
        {"train": {"Train/a/1.jpg": "a", "Train/b/1.jpg": "b"}, "test": {"TEST/b/1.jpg": "b"}},
    ),
    "training and testing": (
        ["Training/a/1.jpg", "Training/b/1.jpg", "Testing/a/1.jpg"],
        {"train": {"Training/a/1.jpg": "a", "Training/b/1.jpg": "b"}, "test": {"Testing/a/1.jpg": "a"}},
    ),
    "three splits": (
        ["train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg"],
        {"train": {"train/a/1.jpg": "a"}, "val": {"val/a/1.jpg": "a"}, "test": {"test/a/1.jpg": "a"}},
    ),
    "dev beside test": (
        ["train/a/1.jpg", "Dev/a/1.jpg", "test_set/a/1.jpg"],
        {"train": {"train/a/1.jpg": "a"}, "val": {"Dev/a/1.jpg": "a"}, "test": {"test_set/a/1.jpg": "a"}},
    ),
    "a validation split alone is the test split": (
        ["train/a/1.jpg", "Valid/a/1.jpg"],
        {"train": {"train/a/1.jpg": "a"}, "test": {"Valid/a/1.jpg": "a"}},
    ),
    "an archive in an archive": (
        ["x/y/train/a/1.jpg", "x/y/train/b/1.jpg", "x/y/test/b/1.jpg"],
        {"train": {"x/y/train/a/1.jpg": "a", "x/y/train/b/1.jpg": "b"}, "test": {"x/y/test/b/1.jpg": "b"}},
    ),
    "classes in an archive": (["x/a/1.jpg", "x/b/1.jpg"], {"train": {"x/a/1.jpg": "a", "x/b/1.jpg": "b"}}),
    "doubled split folders": (
        ["train/train/a/1.jpg", "train/train/b/1.jpg", "test/test/a/1.jpg"],
        {"train": {"train/train/a/1.jpg": "a", "train/train/b/1.jpg": "b"}, "test": {"test/test/a/1.jpg": "a"}},
    ),
    "a flat test folder": (
        ["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "test/2.jpg"],
        {"train": {"train/a/1.jpg": "a", "train/b/1.jpg": "b"}, "test": {"test/1.jpg": None, "test/2.jpg": None}},
    ),
    "a doubled flat test folder": (
        ["train/a/1.jpg", "train/b/1.jpg", "test/images/1.jpg"],
        {"train": {"train/a/1.jpg": "a", "train/b/1.jpg": "b"}, "test": {"test/images/1.jpg": None}},
    ),
    "flat splits": (["train/1.jpg", "test/1.jpg"], {"train": {"train/1.jpg": "all"}, "test": {"test/1.jpg": None}}),
    "one class of which some are deeper": (["a/1.jpg", "a/x/2.jpg"], {"train": {"a/1.jpg": "a", "a/x/2.jpg": "a"}}),
    "folders inside classes": (["a/x/1.jpg", "b/y/1.jpg"], {"train": {"a/x/1.jpg": "a", "b/y/1.jpg": "b"}}),
    "hidden and system folders": (
        [
            "a/1.jpg",
            "a/.ipynb_checkpoints/1-checkpoint.jpg",
            "a/deep/__MACOSX/._1.jpg",
            "b/1.jpg",
            "b/@eaDir/1.jpg/SYNOPHOTO.jpg",
            "b/._1.jpg",
            "__MACOSX/a/1.jpg",
            ".thumbnails/1.jpg",
        ],
        {"train": {"a/1.jpg": "a", "b/1.jpg": "b"}},
    ),
    "other endings": (
        ["a/1.jfif", "a/2.avif", "a/noext", "b/1.JPG", "b/2.jpe"],
        {"train": {"a/1.jfif": "a", "a/2.avif": "a", "a/noext": "a", "b/1.JPG": "b", "b/2.jpe": "b"}},
    ),
    "images beside folders of splits": (
        ["train/a/1.jpg", "test/a/1.jpg", "sample.jpg", "extra/1.jpg"],
        {"train": {"train/a/1.jpg": "a"}, "test": {"test/a/1.jpg": "a"}},
    ),
    "links": (
        [
            *("../far/c/3.jpg", "../4.jpg", "a/1.jpg", "a/up -> ..", "a/gone.jpg -> nowhere"),
            *("b/4.jpg -> ../../4.jpg", "c -> ../far/c", "d -> ../far"),
        ],
        {"train": {"a/1.jpg": "a", "b/4.jpg": "b", "c/3.jpg": "c"}},
    ),
    "names that are not UTF-8": (
        [f"{LATIN}/1.jpg", f"b/{LATIN}.jpg"],
        {"train": {f"{LATIN}/1.jpg": LATIN, f"b/{LATIN}.jpg": "b"}},
    ),
}
# The usual names of splits, each beside one that is plain.
for _name in ("train", "Train", "TRAIN", "training", "Training", "TRAINING", "trn", "train_set", "training-set"):
    LAYOUTS[f"{_name} for training"] = (
        [f"{_name}/a/1.jpg", "test/a/1.jpg"],
        {"train": {f"{_name}/a/1.jpg": "a"}, "test": {"test/a/1.jpg": "a"}},
    )
for _name in ("val", "Val", "VAL", "valid", "Valid", "validation", "Validation", "dev", "Dev", "val_set"):
    LAYOUTS[f"{_name} for validation"] = (
        ["train/a/1.jpg", f"{_name}/a/1.jpg", "test/a/1.jpg"],
        {"train": {"train/a/1.jpg": "a"}, "val": {f"{_name}/a/1.jpg": "a"}, "test": {"test/a/1.jpg": "a"}},
    )
for _name in ("test", "Test", "TEST", "testing", "Testing", "TESTING", "tst", "test set"):
    LAYOUTS[f"{_name} for testing"] = (
        ["train/a/1.jpg", f"{_name}/a/1.jpg"],
        {"train": {"train/a/1.jpg": "a"}, "test": {f"{_name}/a/1.jpg": "a"}},
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_as_it_is_meant(name, tmp_path):
    files, wanted = LAYOUTS[name]
    root = tmp_path / "root"
    plant(root, *files)
    (root / "empty" / "deep").mkdir(parents=True)  # is no class and makes nothing ambiguous
    (root / files[0]).parent.joinpath("notes.txt").write_text("no image")
    assert read(root) == wanted


class Heic(ImageFile.ImageFile):
    """What stands in for pillow-heif's reader: an `ftypheic` box, width, height, then pixels."""

    format = "HEIF"

    def _open(self):
        head = self.fp.read(14)
        self._mode, self._size = "RGB", (head[12], head[13])
        self.tile = [("raw", (0, 0, *self._size), 14, ("RGB", 0, 1))]


@pytest.fixture
def heic(monkeypatch):
    """The package pillow_heif, as if it were installed."""

    def register():
        Image.register_open("HEIF", Heic, lambda head: head[4:12] == b"ftypheic")
        Image.register_extensions("HEIF", [".heic", ".heif"])

    Image.init()
    registries = Image.OPEN, Image.EXTENSION
    before, order = [dict(registry) for registry in registries], list(Image.ID)
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    for cached in (openable_formats, image_endings):
        cached.cache_clear()
    yield
    for registry, content in zip(registries, before):
        registry.clear()
        registry.update(content)
    Image.ID[:] = order
    for cached in (openable_formats, image_endings):
        cached.cache_clear()


def test_heic_is_read_where_a_plug_in_is_installed(heic, tmp_path):
    plant(tmp_path, "a/1.jpg", "b/1.jpg")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for name in ("a/2.heic", "b/2.HEIC", "b/no ending"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\x08\x06" + pixels.tobytes())
    assert read(tmp_path) == {
        "train": {"a/1.jpg": "a", "a/2.heic": "a", "b/1.jpg": "b", "b/2.HEIC": "b", "b/no ending": "b"}
    }
    assert np.array_equal(read_rgb(tmp_path / "b/2.HEIC"), pixels)
    assert datasets.load("folder", tmp_path)["train"].left_out == []


REFUSED = {
    "class or split": (["cat/1.jpg", "dog/1.jpg", "test/1.jpg"], "can be read in two ways: test/ as a split"),
    "a vehicle named train": (["bus/1.jpg", "train/1.jpg"], "train/ and bus/ as classes"),
    "splits without training": (["test/a/1.jpg", "val/a/1.jpg", "x/1.jpg"], "beside which x/ does not belong"),
    "splits in each class": (
        ["a/train/1.jpg", "a/test/1.jpg", "b/train/1.jpg"],
        r"/a looks like a class, and has .* inside.*--root .*/a.*ROOT/train/CLASS",
    ),
    "a dataset beside others": (["set/train/a/1.jpg", "set/Test/a/1.jpg", "other/1.jpg"], "/set looks like a class"),
    "two folders for a split": (["train/a/1.jpg", "Training/a/1.jpg"], "two folders for the train split, Training and"),
    "images beside classes": (["a/1.jpg", "1.jpg"], "1 images beside its folders"),
    "a class that training lacks": (
        ["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/c/1.jpg"],
        "classes that the training split does not: c",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tree_with_two_readings_is_refused(name, tmp_path):
    files, said = REFUSED[name]
    plant(tmp_path, *files)
    with pytest.raises(DatasetError, match=said):
        datasets.load("folder", tmp_path)


def test_classes_sort_as_people_count(tmp_path):
    plant(tmp_path, *(f"{name}/1.jpg" for name in ("10", "2", "1", "rose", "rose2", "x10", "x9", "x", "Rose")))
    split = datasets.load("folder", tmp_path)["train"]
    assert split.classes == ["1", "2", "10", "Rose", "rose", "rose2", "x", "x9", "x10"]
    assert [Path(image).parent.name for image in split.images] == split.classes
    words = ["Maple", "maple", "oak tree", "ash", "Ash", "b-c", "b_c", "bc"]
    assert sorted(words, key=natural_order) == sorted(words)


def test_links_are_followed_and_loops_and_dangling_ones_listed(tmp_path):
    root = tmp_path / "root"
    plant(tmp_path, "root/a/1.jpg", "root/b/2.jpg", "more/3.jpg", "class/4.jpg", "5.jpg")
    for link, target in (
        ("a/more", tmp_path / "more"),
        ("a/loop", root),
        ("b/up", Path("..")),
        ("c", tmp_path / "class"),
        ("b/5.jpg", tmp_path / "5.jpg"),
        ("b/gone.jpg", Path("/nowhere.jpg")),
    ):
        (root / link).symlink_to(target)
    os.mkfifo(root / "a" / "pipe.jpg")
    split = datasets.load("folder", root)["train"]
    found = {
        str(Path(image).relative_to(root)): split.classes[label] for image, label in zip(split.images, split.labels)
    }
    assert found == {"a/1.jpg": "a", "a/more/3.jpg": "a", "b/2.jpg": "b", "b/5.jpg": "b", "c/4.jpg": "c"}
    said = {item["reason"]: (item["count"], item["first"]) for item in split.left_out}
    assert said["links that lead nowhere"] == (1, str(root / "b/gone.jpg"))
    assert said["links to folders that were read already"] == (2, str(root / "a/loop"))
    assert said["neither files nor folders"] == (1, str(root / "a/pipe.jpg"))


def test_what_is_left_out_is_counted_with_its_first_example(tmp_path):
    plant(tmp_path, "train/a/1.jpg", "test/a/1.jpg", "extra/2.jpg", "extra/1.jpg", "train/a/.hidden.jpg")
    for name in ("train/a/b.heic", "train/a/a.heic", "readme", "list.csv"):
        (tmp_path / name).write_bytes(b"no image")
    splits = datasets.load("folder", tmp_path)
    for split in splits.values():
        assert [(item["count"], item["first"]) for item in split.left_out] == [
            (1, str(tmp_path / "train/a/.hidden.jpg")),
            (4, str(tmp_path / "list.csv")),
            (2, str(tmp_path / "extra/1.jpg")),
        ]
        assert "2 .heic, 1 without an ending, 1 .csv; HEIC needs" in split.left_out[1]["reason"]
    plant(tmp_path / "deep", "x/y/a/1.jpg", "x/y/b/1.jpg")
    assert [remark.split(" was")[0] for remark in datasets.load("folder", tmp_path / "deep")["train"].remarks] == [
        str(tmp_path / "deep/x"),
        str(tmp_path / "deep/x/y"),
    ]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.heic").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"No image was found under .*none\. Left out: 1, no images.*a\.heic"):
        datasets.load("folder", tmp_path / "none")


def test_names_that_are_not_utf_8_are_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Image.new("RGB", (9, 8)).save(tmp_path / "1.jpg")
    os.rename(tmp_path / "1.jpg", folder + b"/cr\xe8me.jpg")
    split = datasets.load("folder", tmp_path)["train"]
    assert [os.fsencode(path) for path in split.images] == [folder + b"/cr\xe8me.jpg"]
    assert [os.fsencode(name) for name in split.classes] == [b"caf\xe9"]


def test_images_without_labels_are_neither_held_out_nor_sampled():
    split = datasets.Split([np.zeros((8, 8), np.uint8)] * 9, [0, 0, 0, 1, 1, 1, -1, -1, -1], ["a", "b"])
    train, test = split.hold_out(0.3, 0)
    assert sorted(test.labels) == [0, 1]
    assert train.labels.count(-1) == 3
    assert sorted(split.sample(0, per_class=2).labels) == [0, 0, 1, 1]


def test_image_files_of_a_folder_are_those_of_all_its_folders(tmp_path):
    plant(tmp_path, "b/1.jpg", "a/2", "3.png", ".x/4.jpg")
    assert [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)] == ["3.png", "a/2", "b/1.jpg"]


def test_every_conversion_ends_with_an_account_that_stands_in_the_sidecar(tmp_path):
    root, out = tmp_path / "mine", tmp_path / "out"
    plant(root, "x/Train/a/1.jpg", "x/Train/a/2.jpg", "x/Train/b/1.jpg", "x/valid/b/1.jpg", "x/test/1.jpg")
    (root / "x/Train/b/notes.txt").write_text("no image")
    (root / "x/Train/b/cut.jpg").write_bytes(b"no image")
    os.rename(root / "x/test/1.jpg", os.fsencode(root) + b"/x/test/caf\xe9.jpg")
    done = run_script("write_datasets.py", "--ds", "folder", "--root", root, "--out", out, "--name", "mine")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[3:]
    assert said[:3] == [
        "  train: 3 images, 2 classes of 1 (b) to 2 images (a)",
        "  val: 1 images, 2 classes of 0 (a) to 1 images (b)",
        "  test: 1 images, 1 of them without a label",
    ]
    assert said[3] == f"  {root}/x was entered: it is the only folder there"
    assert said[4] == f"  {root}/x/test has no folders of classes: its images have no labels (-1)"
    assert said[5].startswith("  left out: 1 no images, as far as PIL can tell (1 .txt); first ")
    assert said[6].startswith(f"  left out: 1 images that can't be read; first {root}/x/Train/b/cut.jpg: ")
    assert len(said) == 7
    accounts = {s: json.loads((out / f"mine_{s}.json").read_text())["account"] for s in ("train", "val", "test")}
    assert [accounts[s]["images_per_class"] for s in accounts] == [[2, 1], [0, 1], [0, 0]]
    assert [accounts[s]["unlabelled"] for s in accounts] == [0, 0, 1]
    assert all(account["splits"] == {"train": 4, "val": 1, "test": 1} for account in accounts.values())
    assert [item["count"] for item in accounts["train"]["left_out"]] == [1, 1]
    assert open_beton(out / "mine_test.beton").label.tolist() == [-1]
    assert open_beton(out / "mine_test.beton").classes == ["a", "b"]
