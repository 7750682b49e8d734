"""Predictions on image files: the pixels of evaluation, names of every kind, damaged files, the three formats."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FINETUNE, photographs, run_script, tiny_config
from PIL import Image

import idmm_fast
from idmm_fast.beton import open_beton, printable, write_beton
from idmm_fast.beton.format import JPG
from idmm_fast.config import ConfigError
from idmm_fast.datasets import Split
from idmm_fast.evaluate import prediction_files
from idmm_fast.evaluate.predict import Predictions, find_images
from idmm_fast.evaluate.prediction_files import as_rows, write_predictions
from idmm_fast.loader import evaluation_loader
from idmm_fast.loader.image_files import ImageFiles
from idmm_fast.models import load_trained
from idmm_fast.train.finetuning import finetune

TURNED = 6  # EXIF: by a quarter


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def write_images(folder):
    """Files of every kind in `folder`, as paths; every one can be read."""
    big, small, *more = (Image.fromarray(photo) for photo in photographs(8, seed=5))
    files = {
        "plain.jpg": lambda path: big.save(path, quality=90),
        "full.jpg": lambda path: small.save(path, quality=95, subsampling=0),
        "grey.jpg": lambda path: more[0].convert("L").save(path),
        "upright.jpg": lambda path: more[1].save(path, exif=exif(1)),
        "turned.jpg": lambda path: more[2].save(path, exif=exif(TURNED)),
        "progressive.jpg": lambda path: more[3].save(path, progressive=True),
        "rgb.png": lambda path: more[4].save(path),
        "clear.png": lambda path: more[5].convert("RGBA").save(path),
        "palette.gif": lambda path: more[0].convert("P").save(path),
        "wide.png": lambda path: big.resize((200, 9)).save(path),
        "tiny.png": lambda path: big.resize((3, 2)).save(path),
        "huge.jpg": lambda path: big.resize((900, 700)).save(path),
    }
    for name, write in files.items():
        write(folder / name)
    return [folder / name for name in files]


@pytest.mark.parametrize("mode", ["raw", "jpg"])
@pytest.mark.parametrize(("size", "workers"), [(32, 1), (112, 2)])
def test_files_have_the_pixels_of_evaluation_to_the_bit(mode, size, workers, tmp_path, compiled_kernels):
    """Of a beton of raw pixels all of them, of a beton of JPEGs those that are stored as they are."""
    paths = write_images(tmp_path)
    split = Split(paths, [0] * len(paths), ["a"])
    written = write_beton(tmp_path / "b.beton", split, dataset="x", name="x", mode=mode, quiet=True)
    beton = open_beton(written.path)
    wanted = torch.cat([group.images for (group,) in evaluation_loader(written.path, 5, size)])
    found = {}
    files = ImageFiles(paths, size, 5, workers)
    for pixels, numbers in files:
        assert pixels.dtype == torch.uint8
        found |= dict(zip(numbers.tolist(), pixels))
    assert len(files) == 3
    assert files.damaged == {}
    stored = [beton.mode[row] == JPG and paths[place].suffix == ".jpg" for row, place in enumerate(written.places)]
    same = [torch.equal(found[place], wanted[row]) for row, place in enumerate(written.places)]
    as_it_is = [
        mode == "raw" or (stored[row] and bytes_of(beton, row) == paths[place].read_bytes())
        for row, place in enumerate(written.places)
    ]
    assert sum(as_it_is) == (len(paths) if mode == "raw" else 5)
    assert all(equal for equal, kept in zip(same, as_it_is) if kept)


def bytes_of(beton, row):
    return beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]].tobytes()


ODD = ["new\nline.png", 'a,b "c".png', "tab\t.png", "ünï.png", os.fsdecode(b"caf\xe9.png"), " space .png", "=1+1.png"]


@pytest.fixture(scope="module")
def tuned(tiny_beton, tmp_path_factory):
    """A fine-tuned run, and a folder of the test images as files, classes as folders."""
    root = tmp_path_factory.mktemp("tuned")
    cfg = tiny_config(tiny_beton, root / "run", FINETUNE, training__epochs=4)
    result = finetune(cfg)
    from idmm_fast.beton.decode import decode_rows

    beton = open_beton(tiny_beton)
    for row, pixels in enumerate(decode_rows(beton, None)):
        folder = root / "images" / beton.classes[beton.label[row]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return root, result


def read_csv(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_of_the_predictions_is_the_reports(tuned):
    root, result = tuned
    rows = idmm_fast.predict(root / "images", root / "run", root / "p.csv", topk=9, batch_size=7)
    assert len(rows) == 64
    right = [Path(row["file"]).parent.name == row["label"] for row in rows]
    assert 100 * np.mean(right) == pytest.approx(result["top1"])
    assert 0 < np.mean(right) < 1
    for row in rows:
        assert row["top"][0] == (row["label"], row["probability"])
        assert sum(p for _, p in row["top"]) == pytest.approx(1, abs=1e-5)  # all four classes
    written = read_csv(root / "p.csv")
    assert [(line["file"], line["label"]) for line in written] == [(row["file"], row["label"]) for row in rows]
    assert float(written[3]["probability_4"]) == pytest.approx(rows[3]["top"][3][1], rel=1e-4)
    assert list(written[0])[:5] == ["file", "label", "probability", "label_2", "probability_2"]


def test_probabilities_are_those_of_timms_model(tuned):
    """timm makes the classifier of the run's folder, and prepares the image: 32 pixels, resized to 37 before."""
    import timm

    root, _ = tuned
    file = next((root / "images" / "red").iterdir())
    model = timm.create_model(f"local-dir:{root / 'run'}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.no_grad():
        theirs = model(prepare(Image.open(file))[None]).softmax(1)[0]
    (row,) = idmm_fast.predict(file, root / "run", topk=4)
    names = list(model.pretrained_cfg["label_names"])
    for name, probability in row["top"]:
        assert probability == pytest.approx(theirs[names.index(name)].item(), abs=0.01)


def test_mirror_images_are_averaged(tuned):
    root, _ = tuned
    file = next((root / "images" / "blue").iterdir())
    trained = load_trained(root / "run")
    pixels = torch.from_numpy(next(iter(ImageFiles([file], 32)))[0].numpy()[..., [*range(31, -1, -1), *range(32)]])
    with torch.no_grad():
        sides = [trained.network(side).softmax(1)[0] for side in pixels.split(32, dim=3)]
    assert not torch.allclose(*sides, rtol=0, atol=1e-4)
    (row,) = idmm_fast.predict(file, root / "run", topk=4, flip=True)
    for name, probability in row["top"]:
        assert probability == pytest.approx(sum(sides)[trained.label_names.index(name)].item() / 2, abs=1e-5)


@pytest.fixture
def odd_images(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for k, name in enumerate(ODD):
        Image.new("RGB", (40, 30), (k, 0, 200)).save(folder / "x.png")
        (folder / "x.png").rename(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_names_and_damage_of_every_kind_are_written(ending, tuned, odd_images, tmp_path):
    out = tmp_path / "deep" / f"p.{ending}"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    shown = run_script(
        "predict.py", "--checkpoint", tuned[0] / "run", "--images", odd_images, "--out", out, "--topk", "2"
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == f"{out}: {len(ODD)} images predicted, 1 could not be read"
    assert "broken.jpg: " in shown.stdout
    said = shown.stdout + shown.stderr
    assert "notes.txt" in said
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    wanted = {str(odd_images / name) for name in ODD}
    if ending == "csv":
        rows = read_csv(out)
        good = {row["file"]: row["label_2"] for row in rows if not row["error"]}
        bad = [row["file"] for row in rows if row["error"] and not row["label"]]
    elif ending == "json":
        content = json.loads(out.read_text())
        good = {row["file"]: row["top"][1]["label"] for row in content["predictions"]}
        bad = [row["file"] for row in content["damaged"]]
        assert content["label_names"] == ["red", "green", "blue", "yellow"]
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(out).to_pylist()
        good = {row["file"]: row["label_2"] for row in rows if row["error"] is None}
        bad = [row["file"] for row in rows if row["label"] is None]
        wanted = {os.fsencode(name).decode("utf-8", "backslashreplace") for name in wanted}
    assert set(good) == wanted
    assert set(good.values()) <= {"red", "green", "blue", "yellow"}
    assert [Path(name).name for name in bad] == ["broken.jpg"]


ODD_BYTES = b"a\nb\xe9\x1b"


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_table_is_written_whole_or_not_at_all(ending, tmp_path, monkeypatch):
    found = Predictions(["a.jpg", "b.jpg"], ["x"], np.zeros((2, 1), int), np.ones((2, 1), np.float32), {})
    out = tmp_path / f"t.{ending}"
    write_predictions(found, out)
    whole = out.read_bytes()

    def fail_midway(found):
        yield next(as_rows(found))
        raise OSError("the disk is full")

    monkeypatch.setattr(prediction_files, "as_rows", fail_midway)
    with pytest.raises(OSError, match="the disk is full"):
        write_predictions(found, out)
    assert out.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [out]


def test_a_name_is_said_in_one_line_of_letters_that_the_terminal_has(monkeypatch):
    for encoding, letter in (("utf-8", "\u3000"), ("latin-1", "\\u3000")):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert printable(f"{os.fsdecode(ODD_BYTES)} \ud83d ü\u3000") == rf"a\nb\xe9\x1b \ud83d ü{letter}"
    assert printable(Path("x\ty")) == r"x\ty"
    with pytest.raises(ConfigError, match=r"new\\nline does not exist"):
        find_images(["new\nline"])


def test_what_can_not_be_predicted_is_a_sentence(tuned, tmp_path, monkeypatch, odd_images):
    run = tuned[0] / "run"
    image = odd_images / "ünï.png"

    def says(match, *args, **options):
        with pytest.raises(ConfigError, match=match):
            idmm_fast.predict(*args, **options)

    (tmp_path / "empty").mkdir()
    assert find_images([image, image, odd_images]) == [image, *sorted(set(find_images([odd_images])) - {image})]
    says("nowhere does not exist", tmp_path / "nowhere", run)
    says("no image in", tmp_path / "empty", run)
    says("no run folder", image, tmp_path / "empty")
    says(r"written as \.csv, \.json, \.parquet", image, run, tmp_path / "p.xls")
    says("topk is at least 1", image, run, topk=0)
    says("none of the 1 images can be read; first: .*broken", odd_images / "broken.jpg", run)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("idmm_fast.evaluate.prediction_files.find_spec", lambda name: None)
    says("pip install pyarrow", image, run, tmp_path / "p.parquet")
    assert not list(tmp_path.glob("p.*"))
    shown = run_script("predict.py", "--checkpoint", tmp_path / "nowhere", "--images", image)
    assert (shown.returncode, shown.stderr.startswith("error: ")) == (1, True)


def test_a_checkpoint_knows_its_classes_and_a_pretraining_has_none(tuned, tiny_beton, tmp_path):
    root, _ = tuned
    files = sorted((root / "images").rglob("*.png"))[:5]
    newest = sorted((root / "run" / "checkpoints").glob("epoch_*.pt"))[-1]
    alone = tmp_path / "copy" / "checkpoints"
    alone.mkdir(parents=True)
    (alone / "x.pt").write_bytes(newest.read_bytes())
    (alone.parent / "config.yaml").write_bytes((root / "run" / "config.yaml").read_bytes())
    assert idmm_fast.predict(files, alone / "x.pt") == idmm_fast.predict(files, root / "run")
    (alone.parent / "backbone.safetensors").write_bytes((root / "run" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="has no classifier"):
        idmm_fast.predict(files, alone.parent)
