"""Labels from tables beside the images: the shapes that Kaggle, Roboflow and spreadsheets give them."""

from pathlib import Path

import pytest
from helpers import run_script
from PIL import Image

from idmm_fast import datasets
from idmm_fast.beton import open_beton
from idmm_fast.commands import convert
from idmm_fast.datasets import DatasetError


def plant(root, *images, **tables):
    """Small images; tables as {name: text}, a `__` in a name for a folder."""
    for k, name in enumerate(images):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (k, 0, 0)).save(path)
    for name, text in tables.items():
        (root / f"{name.replace('__', '/')}.csv").write_text(text)


def read(root, labels, **columns):
    return {
        name: {
            str(Path(image).relative_to(root)): split.classes[label] if label >= 0 else None
            for image, label in zip(split.images, split.labels)
        }
        for name, split in datasets.load("folder", root, labels=str(labels), **columns).items()
    }


SHAPES = {
    "a flat folder": (
        ["1.jpg", "2.jpg", "sub/3.jpg"],
        "file,label\n1.jpg,cat\n2.jpg,dog\nsub/3.jpg,cat\n",
        {"train": {"1.jpg": "cat", "2.jpg": "dog", "sub/3.jpg": "cat"}},
    ),
    "names without endings, in folders": (
        ["train/1.jpg", "train/2.jpg", "test/9.jpg"],
        "id,breed\n1,boxer\n2,beagle\n",
        {"train": {"train/1.jpg": "boxer", "train/2.jpg": "beagle"}, "test": {"test/9.jpg": None}},
    ),
    "a column of splits": (
        ["a.jpg", "b.jpg", "c.jpg"],
        "Image Path;Species;Set\na.jpg;x;Training\nb.jpg;y;train\nc.jpg;y;Validation\n",
        {"train": {"a.jpg": "x", "b.jpg": "y"}, "test": {"c.jpg": "y"}},
    ),
    "a number for each class": (
        ["images/a.jpg", "images/b.jpg", "images/c.jpg"],
        "image_id,healthy,rust\na,1,0\nb,0.0,1.0\nc,1,1\n",
        {"train": {"images/a.jpg": "healthy", "images/b.jpg": "rust"}},
    ),
    "two columns, of which one is called like files": (
        ["a.jpg", "b.jpg"],
        "\ufefffilename\tfruit\na.jpg\tapple, red\nb.jpg\t\n",
        {"train": {"a.jpg": "apple, red", "b.jpg": None}},
    ),
    "numbers as labels, Windows's separators, blank lines": (
        ["x/a.jpg", "x/b.jpg", "x/c.jpg"],
        "\nname,class_id\n.\\x\\a.jpg,10\n\nx\\b.jpg,2\nx/c.jpg,1\n",
        {"train": {"x/a.jpg": "10", "x/b.jpg": "2", "x/c.jpg": "1"}},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_table_is_read(shape, tmp_path):
    images, table, wanted = SHAPES[shape]
    plant(tmp_path, *images, labels=table)
    assert read(tmp_path, tmp_path / "labels.csv") == wanted


def test_classes_of_a_table_sort_as_people_count(tmp_path):
    plant(tmp_path, "a.jpg", "b.jpg", "c.jpg", labels="file,label\na.jpg,10\nb.jpg,2\nc.jpg,1\n")
    split = datasets.load("folder", tmp_path, labels=str(tmp_path / "labels.csv"))["train"]
    assert split.classes == ["1", "2", "10"]
    assert split.labels == [2, 1, 0]


def test_roboflows_tables_lie_in_the_folders_of_the_splits(tmp_path):
    """The same names in each folder; the table's own folder decides."""
    plant(
        tmp_path,
        "train/1.jpg",
        "train/2.jpg",
        "valid/1.jpg",
        "test/1.jpg",
        train___classes="filename, cat, dog\n1.jpg, 1, 0\n2.jpg, 0, 1\n",
        valid___classes="filename, cat, dog\n1.jpg, 0, 1\n",
        test___classes="filename, cat, dog\n1.jpg, 1, 0\n",
    )
    assert read(tmp_path, "_classes.csv") == {
        "train": {"train/1.jpg": "cat", "train/2.jpg": "dog"},
        "val": {"valid/1.jpg": "dog"},
        "test": {"test/1.jpg": "cat"},
    }


def test_a_table_named_like_a_split_names_its_images(tmp_path):
    plant(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg", train="id,label\n1,a\n2,b\n")
    wanted = {"train": {"train/1.jpg": "a", "train/2.jpg": "b"}, "test": {"test/1.jpg": None}}
    assert read(tmp_path, "train.csv") == wanted


def test_an_image_of_another_split_does_not_take_the_place_of_a_missing_one(tmp_path):
    """Training image 3 is missing; test image 3 had gone into training with its label."""
    plant(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg", train="id,label\n1,a\n2,b\n3,a\n")
    assert read(tmp_path, "train.csv") == {
        "train": {"train/1.jpg": "a", "train/2.jpg": "b"},
        "test": {"test/3.jpg": None},
    }


def test_a_table_may_name_images_in_the_folder_of_another_split(tmp_path):
    """Where its split has none: test images are often chosen out of train/."""
    plant(tmp_path, "train/1.jpg", "train/2.jpg", test="id,label\n2,a\n")
    assert read(tmp_path, "test.csv") == {"test": {"train/2.jpg": "a"}}


def test_a_column_of_splits_tells_images_of_one_name_apart(tmp_path):
    plant(tmp_path, "train/1.jpg", "test/1.jpg", all="file,label,split\n1.jpg,a,train\n1.jpg,b,train\n")
    with pytest.raises(DatasetError, match="says other things"):
        read(tmp_path, "all.csv")
    (tmp_path / "all.csv").write_text("file,label,split\n1.jpg,a,train\n1.jpg,a,test\n")
    assert read(tmp_path, "all.csv") == {"train": {"train/1.jpg": "a"}, "test": {"test/1.jpg": "a"}}


@pytest.mark.parametrize("name", ["pics", "train", "test", "dev"])
@pytest.mark.parametrize("beside", [False, True])
def test_what_the_folder_of_all_is_called_decides_no_split(tmp_path, name, beside):
    root = tmp_path / name
    plant(root, "train/a.jpg", "test/b.jpg", labels="file,label\na.jpg,x\nb.jpg,x\n")
    table = root / "labels.csv"
    if beside:
        (tmp_path / "training").mkdir()
        table = table.rename(tmp_path / "training" / "labels.csv")
    assert read(root, table) == {"train": {"train/a.jpg": "x"}, "test": {"test/b.jpg": "x"}}


def test_files_are_found_by_absolute_paths_and_from_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "in", "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "in" / "b" / "t.csv").write_text(f"file,label\n{tmp_path}/in/a/1.jpg,x\n../a/2.jpg,y\n")
    assert read(Path("in"), "in/b/t.csv") == {"train": {"a/1.jpg": "x", "a/2.jpg": "y"}}


def test_columns_can_be_named(tmp_path):
    table = "file,label,second,part\na.jpg,x,u,train\nb.jpg,y,v,train\nc.jpg,x,u,test\n"
    plant(tmp_path, "a.jpg", "b.jpg", "c.jpg", labels=table)
    named = {"file_column": "file", "label_column": "second", "split_column": "part"}
    assert read(tmp_path, tmp_path / "labels.csv", **named) == {
        "train": {"a.jpg": "u", "b.jpg": "v"},
        "test": {"c.jpg": "u"},
    }


def test_a_column_that_is_only_called_like_one_of_splits_is_ignored_and_that_is_said(tmp_path):
    """HAM10000's `dataset` had made its table unusable."""
    plant(tmp_path, "a.jpg", "b.jpg", labels="image_id,dx,dataset\na,nv,vidir_modern\nb,mel,rosendahl\n")
    path = str(tmp_path / "labels.csv")
    split = datasets.load("folder", tmp_path, labels=path)["train"]
    assert [split.classes[label] for label in split.labels] == ["nv", "mel"]
    assert split.remarks == [
        f"{path}: the column dataset is not taken for one of splits: it holds none, first vidir_modern",
        f"{path}: files are in the column image_id, labels in dx",
    ]
    with pytest.raises(DatasetError, match="row 2: 'vidir_modern' is not a split"):
        read(tmp_path, path, split_column="dataset")
    plant(tmp_path, labels="image_id,dx,dataset,usage\na,nv,vidir_modern,train\nb,nv,rosendahl,test\n")
    assert read(tmp_path, path) == {"train": {"a.jpg": "nv"}, "test": {"b.jpg": "nv"}}


def test_what_a_table_leaves_out_is_in_the_account(tmp_path):
    table = "file,label\na.jpg,x\nb.jpg,y\ngone.jpg,x\nlost.jpg,y\na.jpg,x\n"
    plant(tmp_path / "in", "a.jpg", "b.jpg", "more/c.jpg", labels=table)
    options = ("--ds", "folder", "--root", tmp_path / "in", "--labels", tmp_path / "in" / "labels.csv")
    done = run_script("write_datasets.py", *options, "--out", tmp_path / "out", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert f"left out: 2 rows without an image file; first {tmp_path}/in/labels.csv, row 4: gone.jpg" in done.stdout
    assert f"left out: 1 rows that name an image again; first {tmp_path}/in/labels.csv, row 6" in done.stdout
    assert f"left out: 1 images that no row names; first {tmp_path}/in/more/c.jpg" in done.stdout
    assert "files are in the column file, labels in label" in done.stdout
    beton = open_beton(tmp_path / "out" / "mine_train.beton")
    assert (len(beton), beton.classes) == (2, ["x", "y"])


OF_OTHERS = ["--labels=a.csv", "--file-column=a", "--label-column=a", "--split-column=a", "--shards=a", "--no-labels"]


@pytest.mark.parametrize("option", OF_OTHERS)
def test_options_of_other_datasets_are_refused(option):
    refused = run_script("write_datasets.py", "--ds", "pets", option)
    assert refused.returncode == 2
    assert f"{option.partition('=')[0]} is for --ds" in refused.stderr


@pytest.mark.parametrize("option", [option for option in OF_OTHERS if "column" in option])
def test_columns_without_a_table_are_refused(option):
    refused = run_script("write_datasets.py", "--ds", "folder", option)
    assert refused.returncode == 2
    assert "--file-column, --label-column and --split-column are columns of the table --labels" in refused.stderr
    assert convert.parse(["--ds", "hf", "--name", "x", "--label-column", "a"]).label_column == "a"


MISTAKES = {
    "no such table": (None, "there is no such file, nor one of this name"),
    "no rows": ("file,label\n", "has no rows below its first"),
    "no column of files": ("what,label\na.jpg,x\n", "--file-column. Its columns are: what, label"),
    "no column of labels": ("file,u,v\na.jpg,5,6\n", "--label-column. Its columns are: file, u, v"),
    "none of the files": ("file,label\nz.jpg,x\n", r"no row of .* names an image .*Left out: 1, rows without an image"),
    "two labels": ("file,label\na.jpg,x\na.jpg,y\n", r"row 3 says other things of .*a\.jpg than .*row 2"),
    "two files": ("file,label\nc.jpg,x\n", r"row 2: c\.jpg may be .*one/c\.jpg or .*two/c\.jpg"),
    "a strange split": ("file,label,split\na.jpg,x,train\nb.jpg,x,later\n", "row 3: 'later' is not a split"),
    "strange splits alone": ("file,label,split\na.jpg,x,tr\nb.jpg,x,te\n", "row 2: 'tr' is not a split"),
    "a class that training has not": (
        "file,label,split\na.jpg,x,train\nb.jpg,y,test\n",
        "of the test split has the class y",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_tables_are_sentences(mistake, tmp_path):
    text, said = MISTAKES[mistake]
    plant(tmp_path, "a.jpg", "b.jpg", "one/c.jpg", "two/c.jpg", **({"labels": text} if text else {}))
    with pytest.raises(DatasetError, match=said):
        read(tmp_path, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DatasetError, match="is not a CSV file in UTF-8"):
        read(tmp_path, tmp_path / "labels.csv")
    plant(tmp_path, labels="file,label\na.jpg,x\n")
    with pytest.raises(DatasetError, match="has no column none, which --label-column names"):
        read(tmp_path, tmp_path / "labels.csv", label_column="none")


def test_an_image_outside_the_folders_of_splits_changes_nothing_for_those_inside(tmp_path):
    plant(tmp_path, *(f"train/{k}.jpg" for k in range(3)), labels="id,breed\n0,x\n1,y\n2,x\n")
    wanted = read(tmp_path, tmp_path / "labels.csv")
    plant(tmp_path, "sample.jpg", "extra/9.jpg")
    assert read(tmp_path, tmp_path / "labels.csv") == wanted
    assert len(wanted["train"]) == 3
