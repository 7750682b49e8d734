"""What `idmm-fast inspect` finds in folders and betons in which everything is known, and what it suggests."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import run_script
from PIL import Image

from idmm_fast.__main__ import main
from idmm_fast.beton import open_beton, write_beton
from idmm_fast.convert import convert
from idmm_fast.datasets import DatasetError, Split, folder
from idmm_fast.inspect import Inspection, Seen, inspect, report_lines, run_name, suggest, write_sheets


@pytest.fixture
def root(tmp_path, photos):
    """mine/: a (12 images), b (3, one gray, one damaged), a test split with one image of the training split."""
    for k in range(14):
        path = tmp_path / "mine" / "train" / ("a" if k < 12 else "b") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[k][: 80 + k, :150]).convert("L" if k == 13 else "RGB").save(path)
    (tmp_path / "mine/train/b/cut.png").write_bytes(b"no image")
    (tmp_path / "mine/test/b").mkdir(parents=True)
    Image.open(tmp_path / "mine/train/a/3.png").save(tmp_path / "mine/test/b/other.bmp")
    shutil.copy(tmp_path / "mine/train/a/5.png", tmp_path / "mine/train/a/again.png")
    return tmp_path / "mine"


def look(*arguments):
    shown = run_script("inspect_data.py", *arguments, "--no-measure")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_everything_that_is_wrong_with_a_folder_is_said(root, tmp_path):
    said = look(root, "--out", tmp_path / "sheets")
    for wanted in (
        "shorter side 80 to 93 pixels",
        "  1 gray, 15 in colour\n",
        f"1 damaged: first {root}/train/b/cut.png: it is not an image that PIL can read",
        f"1 image twice or more within a split; first {root}/train/a/5.png and {root}/train/a/again.png",
        f"1 image twice or more ACROSS SPLITS: accuracy on them is not to be trusted; first {root}/train/a/3.png and "
        f"{root}/test/b/other.bmp",
        f"1 image twice or more with different labels; first {root}/train/a/3.png",
        "2 classes in train, of 2 (b) to 13 (a) images",
        "1 with fewer than 10 images: b (2)",
        f"  {tmp_path}/sheets: 3 pictures\n",
        "for 15 training images with a shorter side of 86 pixels, stored as raw\n",
        f"idmm-fast pretrain --config own --data {root} --model.image_size=64",
    ):
        assert wanted in said, wanted
    sheets = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert sheets == ["test_0001_b.png", "train_0000_a.png", "train_0001_b.png"]
    first = np.asarray(Image.open(tmp_path / "sheets" / "train_0000_a.png"))
    assert first.shape == (2 * 96, 8 * 96, 3)
    assert first[:40, :90].std() > 10


def test_betons_are_looked_at_as_their_folder_is(root, tmp_path):
    train, test = (
        write_beton(tmp_path / f"m_{s}.beton", split, dataset="folder", name=s, mode="raw", quiet=True).path
        for s, split in folder.load(root).items()
    )
    said = look(train, test, "--out", tmp_path / "sheets")
    assert "1 image twice or more ACROSS SPLITS" in said
    assert "2 classes in train, of 2 (b) to 13 (a) images" in said
    assert "0 damaged" in said
    assert f"idmm-fast pretrain --config own --data {train} --model.image_size=64" in said
    assert f"idmm-fast finetune --config own --data {train} --data.test={test} --init runs/m --model" in said


def test_a_good_flat_folder_is_enough_for_pretraining(tmp_path, photos):
    for k in range(3):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(photos[k]).save(tmp_path / "x" / f"{k}.png")
    said = look(tmp_path / "x", "--out", tmp_path / "sheets")
    assert "duplicates, by their pixels\n  none" in said
    assert "one class or none: enough for pretraining" in said
    assert "idmm-fast pretrain " in said
    assert "idmm-fast finetune " not in said
    missing = run_script("inspect_data.py", tmp_path / "nothing")
    assert missing.returncode == 1
    assert "is not a folder" in missing.stderr


def test_channels_that_are_changed_are_counted(tmp_path):
    red = Image.new("RGB", (20, 20), "red")
    red.convert("RGBA").save(tmp_path / "clear.png")
    red.save(tmp_path / "red.png")
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(tmp_path / "deep.png")
    lines = report_lines(inspect([tmp_path], quiet=True))
    assert "  1 gray, 2 in colour; 1 transparent: laid on white; 1 of more than 8 bits: scaled" in lines


def test_labels_come_from_a_table(tmp_path, photos, monkeypatch):
    (tmp_path / "photos").mkdir()
    rows = ["file,label"]
    for k in range(6):
        Image.fromarray(photos[k][:70, :70]).save(tmp_path / "photos" / f"{k}.png")
        rows.append(f"{k}.png,{'cat' if k < 4 else 'dog'}")
    table = tmp_path / "my labels.csv"
    table.write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    said = look(tmp_path / "photos", "--labels", table)
    assert "2 classes in train, of 2 (dog) to 4 (cat) images" in said
    assert (
        f"idmm-fast convert --ds folder --root {tmp_path}/photos --labels '{table}' --test-share 0.2 --name photos\n"
        in said
    )
    assert "--data data/photos_train.beton --data.test=data/photos_test.beton --init runs/photos " in said
    assert len(list(Path("runs/photos_inspected").iterdir())) == 2
    with pytest.raises(DatasetError, match="betons have their labels"):
        inspect([Path("a.beton")], {"labels": "x.csv"})
    assert "columns of the table" in run_script("inspect_data.py", ".", "--label-column", "x").stderr


def seen(counts, side=64, split="train", damaged=0):
    """Images of a split that look alike, `counts` of each class; of the last class so many are damaged."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return [
        Seen(split, row, label, f"{split} {row}", side, 2 * side, damage="cut" * (row >= len(labels) - damaged))
        for row, label in enumerate(labels)
    ]


def found(counts, tests=(), side=64, damaged=0, split="test"):
    names = [f"c{k}" for k in range(len(counts))]
    images = {"train": seen(counts, side, damaged=damaged)} | ({split: seen(tests, side, split)} if tests else {})
    sources = {name: Split([b""] * len(those), [i.label for i in those], names) for name, those in images.items()}
    return Inspection(sources, [image for those in images.values() for image in those], stored="raw")


def test_balance_and_tiny_classes_are_of_the_images_that_can_be_read():
    lines = report_lines(found([101, 12], damaged=2))
    assert "  2 classes in train, of 10 (c1) to 101 (c0) images" in lines
    assert any(line.startswith("  unbalanced: ") for line in lines)
    assert not any("fewer than" in line for line in lines)
    lines = report_lines(found([100, *[9] * 12, 10]))
    assert "  12 with fewer than 10 images: " + ", ".join(f"c{k} (9)" for k in range(1, 9)) + ", and 4 more" in lines
    assert not any("unbalanced" in line for line in report_lines(found([100, 10])))


def commands(*args, name="mine", path="my images", **options):
    return [c.text for c in suggest(found(*args, **options), [Path(path)], name).commands]


def test_the_size_of_the_images_decides_on_the_size_of_the_input():
    data = "--config own --data 'my images'"
    many = [1000, 1000]
    assert commands(many, side=300) == [
        f"idmm-fast pretrain {data} --out runs/mine",  # what `own` has by itself is left out
        f"idmm-fast finetune {data} --init runs/mine --out runs/mine_finetune",
        "idmm-fast predict --checkpoint runs/mine_finetune --images NEW_IMAGES",
    ]
    assert commands(many, side=130)[1] == (
        f"idmm-fast finetune {data} --init runs/mine --model.image_size=112 --out runs/mine_finetune"
    )
    patch = "--model.options='{patch_size: 4}'"
    assert commands(many, side=32)[0] == f"idmm-fast pretrain {data} --model.image_size=32 {patch} --out runs/mine"
    assert commands(many, side=32)[1].endswith(f"--model.image_size=32 {patch} --out runs/mine_finetune")
    assert [run_name(Path(name)) for name in ("müller 1", "x/pets_train.beton")] == ["müller_1", "pets"]


def test_few_images_are_cross_validated():
    """Where the test images, a fifth of each class or a split of its own, are fewer than 200."""
    texts = suggest(found([50, 30]), [Path("x")], "mine").commands
    assert [c.verb for c in texts] == ["pretrain", "finetune", "finetune", "predict"]
    assert (texts[1].images, texts[1].tested) == (64, 16)
    assert texts[1].why == "it holds out 16 of the 80 images for testing"
    assert texts[2].text.endswith(" --out runs/mine_folds --folds 5")
    assert (texts[2].images, texts[2].tested) == (4 * 80, 80)
    assert texts[2].why == "16 test images know an accuracy to about 12 points; 5 folds test 80 images, each once"
    assert commands([50, 3])[2].endswith("--folds 3")
    one = suggest(found([50, 1]), [Path("x")], "mine").commands
    assert one[1].why.endswith(
        "10 test images know an accuracy to about 16 points, and a class with one image for training allows no "
        "cross-validation (--folds)"
    )
    assert [c.verb for c in one] == ["pretrain", "finetune", "predict"]
    assert not any("--folds" in text for text in commands([500, 500]))
    assert not any("--folds" in text for text in commands([50, 50], [100, 100]))
    assert any("--folds 5" in text for text in commands([500, 500], [60, 60]))


def test_a_labelled_validation_split_tests_where_there_is_no_test_split(tmp_path, photos, monkeypatch):
    """None with labels, that is. The conversion of the folder takes it whole; that of a table does not."""
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "cache"))
    for k in range(11):
        folder = "test" if k == 10 else f"{'train' if k < 4 else 'val'}/{'ab'[k % 2]}"
        path = tmp_path / "x" / folder / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[k][:40, :40]).save(path)
    betons = convert(tmp_path / "x", test_share=0.2)
    tuned, folds = suggest(inspect([tmp_path / "x"], quiet=True), [tmp_path / "x"], "x").commands[1:3]
    assert [tuned.images, tuned.tested] == [len(open_beton(betons[split])) for split in ("train", "test")] == [4, 6]
    assert tuned.why == ""
    assert (folds.images, folds.tested) == (4, 4)
    large = found([100, 100], [1000, 1000], split="val")
    assert [(c.verb, c.images, c.tested) for c in suggest(large, [Path("x")], "x").commands[1:]] == [
        ("finetune", 200, 2000),
        ("predict", 0, 0),
    ]
    assert suggest(large, [Path("x")], "x", {"labels": "x.csv"}).commands[2].tested == 40


def test_it_is_said_why_there_is_no_fine_tuning(tmp_path, photos, monkeypatch):
    (tmp_path / "x").mkdir()
    for k in range(3):
        Image.fromarray(photos[k][:70, :70]).save(tmp_path / "x" / f"{k}.png")
    table = tmp_path / "x.csv"
    table.write_text("file,label\n0.png,a\n1.png,b\n2.png,c\n")
    monkeypatch.chdir(tmp_path)
    said = look("x", "--labels", table)
    assert "--test-share" not in said
    assert "idmm-fast finetune" not in said
    assert said.endswith("  no fine-tuning: each class has one image, so none can be held out for testing\n")
    suggestions = [suggest(found(counts), [Path("x")], "x", {"labels": "x.csv"}) for counts in ([9], [2, 1])]
    assert suggestions[0].missing == "no fine-tuning: it takes images of two classes"
    assert ["--test-share 0.2" in each.commands[0].text for each in suggestions] == [False, True]
    assert suggestions[1].missing == ""
    split = Split([photo[:70, :70] for photo in photos[:3]], [0, 0, 1], ["a", "b"])
    path = write_beton(tmp_path / "x_train.beton", split, dataset="x", name="train", mode="raw", quiet=True).path
    alone = suggest(inspect([path], quiet=True), [path], "x")
    assert [c.verb for c in alone.commands] == ["pretrain"]
    assert alone.missing.endswith(
        "there are no test images with labels, and a class of one image allows no cross-validation (--folds)"
    )


@pytest.mark.parametrize("split", ["test", "val"])
def test_without_training_images_there_are_no_commands(split, tmp_path, photos, monkeypatch):
    """They had been given, and failed; the images of the other split were counted as those for training."""
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        path = tmp_path / "x" / split / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[k][:70, :70]).save(path)
    said = look("x")
    assert said.endswith("\nno training images: add x/train/CLASS\n")
    assert "idmm-fast" not in said
    Path("x.csv").write_text("file,label,split\n" + "".join(f"{k}.png,{'ab'[k % 2]},{split}\n" for k in range(4)))
    assert look("x", "--labels", "x.csv").endswith("\nno training images: x.csv names none\n")
    table = folder.load(tmp_path / "x")["test"]
    beton = write_beton(tmp_path / "x.beton", table, dataset="x", name="test", mode="raw", quiet=True).path
    assert suggest(inspect([beton], quiet=True), [beton], "x").commands  # it was named to be trained on


def test_folds_are_of_the_images_that_a_conversion_leaves_for_training():
    """A fifth of each class, one image at least, is in a beton of its own; folds read the other one."""
    small, larger = (suggest(found(c), [Path("x")], "x", {"labels": "x.csv"}).commands for c in ([3, 3], [50, 30]))
    assert small[3].text.startswith("idmm-fast finetune --config own --data data/x_train.beton --init runs/x ")
    assert small[3].text.endswith(" --folds 2")
    assert [(c.images, c.tested) for c in small[1:4]] == [(4, 0), (4, 2), (4, 4)]
    assert [(c.images, c.tested) for c in larger[1:4]] == [(64, 0), (64, 16), (4 * 64, 64)]
    left = suggest(found([3, 2]), [Path("x")], "x", {"labels": "x.csv"}).commands
    assert "a class with one image for training allows no cross-validation" in left[2].why
    assert left[3].verb == "predict"


def test_betons_without_tests_can_be_cross_validated_alone(tmp_path, photos):
    split = Split([photo[:70, :70] for photo in photos[:6]], [0, 0, 0, 1, 1, 1], ["a", "b"])
    path = write_beton(tmp_path / "x_train.beton", split, dataset="x", name="train", mode="raw", quiet=True).path
    texts = [c.text for c in suggest(inspect([path], quiet=True), [path], "x").commands]
    assert texts[1].endswith("--out runs/x_folds --folds 3")
    assert texts[2] == "idmm-fast predict --checkpoint runs/x_folds/fold_1 --images NEW_IMAGES"
    assert len(texts) == 3


def test_a_test_beton_without_labels_tests_nothing(tmp_path, photos):
    """A command that names it would be refused."""
    paths = []
    for name, labels in (("train", [0, 0, 0, 1, 1, 1]), ("test", [-1, -1])):
        split = Split([photo[:70, :70] for photo in photos[: len(labels)]], labels, ["a", "b"])
        file = tmp_path / f"x_{name}.beton"
        paths.append(write_beton(file, split, dataset="x", name=name, mode="raw", quiet=True).path)
    found = suggest(inspect(paths, quiet=True), paths, "x").commands
    assert [c.verb for c in found] == ["pretrain", "finetune", "predict"]
    assert found[1].text.endswith("--out runs/x_folds --folds 3")
    assert found[1].why == "there are no test images with labels; 3 folds test 6 images, each once"
    assert not any("--data.test" in c.text for c in found)


def test_betons_of_one_split_and_one_name_are_all_looked_at(tmp_path, photos):
    paths = []
    for k in range(4):
        split = Split([photo[:70, :70] for photo in photos[10 * k : 10 * k + k + 2]], [0] * (k + 2), ["a"])
        (tmp_path / f"{k}").mkdir()
        file = tmp_path / f"{k}" / "x.beton"
        paths.append(write_beton(file, split, dataset="x", name="train", mode="raw", quiet=True).path)
    seen = inspect(paths, quiet=True)
    assert list(seen.sources) == ["train", "x", str(paths[2]), str(paths[3])]
    assert [len(seen.good(split)) for split in seen.sources] == [2, 3, 4, 5]
    assert len(set(write_sheets(seen, tmp_path / "sheets"))) == 4


def test_times_stand_below_their_commands(root, tmp_path, monkeypatch):
    from idmm_fast.bench import minutes

    asked = []

    def measure_pace(verb, keys, source, rows, mode):
        asked.append((verb, keys["model.image_size"], len(rows), mode))
        if len(asked) > 1:
            raise ValueError("it is too small")
        return minutes.Pace(2.5, 5, 0, 800, 1, 256, 256)

    monkeypatch.setattr(minutes, "measure_pace", measure_pace)
    lines = run_script("inspect_data.py", root, "--out", tmp_path / "sheets").stdout.splitlines()
    (pretrain,) = (k for k, line in enumerate(lines) if "idmm-fast pretrain" in line)
    assert lines[pretrain + 1] == "    about 80 minutes on this machine: 800 epochs, 2.5 images/s in 5 steps"
    assert lines.count("    how long it takes could not be measured: it is too small") == 2  # the folds too
    assert asked == [("pretrain", 64, 15, "raw"), ("finetune", 64, 15, "raw")]


def test_suggested_commands_are_understood(monkeypatch, tmp_path):
    """All but the images, which are not there."""
    monkeypatch.chdir(tmp_path)
    Path("my images").mkdir()
    Path("runs/mine").mkdir(parents=True)
    for text in commands([50, 50], side=32)[:3]:
        name, verb, *arguments = shlex.split(text)
        assert name == "idmm-fast"
        with pytest.raises(SystemExit) as end:
            main([verb, *arguments])
        assert "No image was found under my images" in end.value.code


def test_a_class_of_a_long_name_has_its_sheet(tmp_path):
    found = Inspection({"train": Split([], [], ["漢" * 90, "k" * 240])}, thumbnails={})
    for label in (0, 1):
        found.thumbnails["train", label] = [Image.new("RGB", (9, 8))]
    files = write_sheets(found, tmp_path)
    assert [len(list(tmp_path.iterdir())), *(file.name[:12] for file in files)] == [2, "train_0000_漢", "train_0001_k"]


def test_it_is_looked_whether_the_training_images_fit_into_memory(root, monkeypatch):
    """As a conversion does, which chooses for each split."""
    seen = []
    monkeypatch.setattr("idmm_fast.inspect.look.choose_mode", lambda images: seen.append(len(images)) or "raw")
    found = inspect([root], quiet=True)
    assert seen == [len(found.sources["train"])]


def test_many_classes_share_contact_sheets(tmp_path):
    """Of thirty classes, each of one colour, 25 rows on the first page and 5 on the second."""
    images = found([3] * 30)
    for label in range(30):
        images.thumbnails["train", label] = [Image.new("RGB", (96, 50), (0, 8 * label, 255))] * 3
    files = write_sheets(images, tmp_path / "sheets")
    assert [file.name for file in files] == ["train_classes_0000-0024.png", "train_classes_0025-0029.png"]
    first, second = (np.asarray(Image.open(file)) for file in files)
    assert (first.shape, second.shape) == ((25 * 96, 200 + 8 * 96, 3), (5 * 96, 200 + 8 * 96, 3))
    for label in range(30):
        page, row = (first, label) if label < 25 else (second, label - 25)
        strip = page[row * 96 : (row + 1) * 96]
        assert strip[20, 200 + 2 * 96 + 40].tolist() == [0, 8 * label, 255]
        assert strip[20, 200 + 3 * 96 + 40].tolist() == [255, 255, 255]
        assert strip[:, :200].min() < 100  # its name


@pytest.mark.parametrize("counts", [[3, 3], [3] * 30])
def test_a_contact_sheet_is_written_whole_or_not_at_all(counts, tmp_path, monkeypatch):
    images = found(counts)
    for label in range(len(counts)):
        images.thumbnails["train", label] = [Image.new("RGB", (96, 50))]
    whole = {file: file.read_bytes() for file in write_sheets(images, tmp_path / "sheets")}

    def save(self, path, *args, **options):
        Path(path).write_bytes(b"half of")
        raise OSError("the disk is full")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="full"):
        write_sheets(images, tmp_path / "sheets")
    assert {file: file.read_bytes() for file in (tmp_path / "sheets").iterdir()} == whole
