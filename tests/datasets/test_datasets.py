"""The datasets, read from small trees laid out as upstream lays them out, by the code and then by the script."""

import errno
import gzip
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, run_script
from PIL import Image
from scipy.io import savemat

from idmm_fast import datasets
from idmm_fast.beton import open_beton
from idmm_fast.datasets import (
    DatasetError,
    Split,
    choose_listed,
    demo,
    fetch,
    imagenet,
    indoor67,
    pets,
    raw_files,
    read_split_list,
)
from idmm_fast.datasets.split import Source
from idmm_fast.datasets.split_list import luma_digest


def photo(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (value % 256, 0, 0)).save(path)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(str, lines)) + "\n")


def make_pets(root):
    """images/Breed_N.jpg and annotations/{trainval,test}.txt with lines `Breed_N class species breed`."""
    lines = {"trainval": ["#Image CLASS-ID SPECIES BREED ID"], "test": []}
    for breed, c in (("Abyssinian", 1), ("american_bulldog", 2), ("Zebra_fox", 3)):
        for n in range(1, 8):
            photo(root / "images" / f"{breed}_{n}.jpg", 10 * c + n)
            lines["test" if n > 5 else "trainval"].append(f"{breed}_{n} {c} 1 {c}")
    for split, rows in lines.items():
        write(root / "annotations" / f"{split}.txt", rows)
    (root / "images" / "._Abyssinian_1.jpg").write_bytes(b"mac")  # upstream's archive has such files
    return 15, 6, ["Abyssinian", "american_bulldog", "Zebra_fox"]


def make_flowers(root):
    """jpg/image_NNNNN.jpg, imagelabels.mat (labels from 1) and setid.mat (trnid, valid, tstid)."""
    for n in range(1, 10):
        photo(root / "jpg" / f"image_{n:05d}.jpg", 20 * n)
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 1, 2, 2, 3, 3, 1, 2, 3]], np.uint8)})
    savemat(
        root / "setid.mat",
        {"trnid": np.array([[1, 3, 5]]), "valid": np.array([[2, 4]]), "tstid": np.array([[6, 7, 8, 9]])},
    )
    return 5, 4, ["class_001", "class_002", "class_003"]


def make_dtd(root):
    for texture in ("banded", "zigzagged"):
        for n in range(6):
            photo(root / "dtd" / "images" / texture / f"{texture}_{n:04d}.jpg", n)
        for split, part in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5))):
            with open(_made(root / "dtd" / "labels" / f"{split}1.txt"), "a") as file:
                file.writelines(f"{texture}/{texture}_{n:04d}.jpg\n" for n in part)
    return 8, 4, ["banded", "zigzagged"]


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make_indoor67(root):
    names = [f"{room}/{room}_{n}.jpg" for room in ("airport_inside", "winecellar") for n in range(4)]
    for k, name in enumerate(names):
        photo(root / "Images" / name, k)
    write(root / "TrainImages.txt", [n for n in names if not n.endswith("_3.jpg")])
    write(root / "TestImages.txt", [n for n in names if n.endswith("_3.jpg")])
    return 6, 2, ["airport_inside", "winecellar"]


def make_cub(root):
    folder = root / "CUB_200_2011"
    names = [
        f"{c:03d}.{bird}/{bird}_{n}.jpg"
        for c, bird in ((1, "Black_footed_Albatross"), (2, "Laysan_Albatross"))
        for n in range(3)
    ]
    for k, name in enumerate(names):
        photo(folder / "images" / name, k)
    write(folder / "images.txt", [f"{k + 1} {n}" for k, n in enumerate(names)])
    write(folder / "image_class_labels.txt", [f"{k + 1} {int(n[:3])}" for k, n in enumerate(names)])
    write(folder / "train_test_split.txt", [f"{k + 1} {int(k % 3 < 2)}" for k in range(6)])
    write(folder / "classes.txt", ["1 001.Black_footed_Albatross", "2 002.Laysan_Albatross"])
    return 4, 2, ["Black_footed_Albatross", "Laysan_Albatross"]


def make_aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ["707-320", "Boeing 717", "Yak-42"]
    rows = [(f"{1000000 + k}", variants[k % 3]) for k in range(9)]
    for k, (number, _) in enumerate(rows):
        photo(data / "images" / f"{number}.jpg", k)
    write(data / "variants.txt", variants)
    write(data / "images_variant_trainval.txt", [f"{n} {v}" for n, v in rows[:6]])
    write(data / "images_variant_test.txt", [f"{n} {v}" for n, v in rows[6:]])
    return 6, 3, variants


def make_cars(root):
    kinds = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    for split, count, name in (
        ("train", 4, "devkit/cars_train_annos.mat"),
        ("test", 2, "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros((1, count), kinds)
        for k in range(count):
            rows[0, k] = (np.array([[3]]), np.array([[k % 2 + 1]]), np.array([f"{k + 1:05d}.jpg"]))
            photo(root / f"cars_{split}" / f"{k + 1:05d}.jpg", k)
        savemat(_made(root / name), {"annotations": rows})
    names = np.empty((1, 2), "O")
    names[0, 0], names[0, 1] = classes
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    return 4, 2, classes


def make_imagenet(root, images=12):
    for c, wnid in enumerate(("n01440764", "n01443537", "n01484850")):
        for n in range(images):
            photo(root / "train" / wnid / f"{wnid}_{n}.JPEG", 20 * c + n)
        for n in range(2):
            photo(root / "val" / wnid / f"ILSVRC2012_val_{10 * c + n:08d}.JPEG", n)
    return 3 * images, 6, ["n01440764", "n01443537", "n01484850"]


UPSTREAM = {
    "pets": make_pets,
    "flowers": make_flowers,
    "dtd": make_dtd,
    "indoor67": make_indoor67,
    "cub": make_cub,
    "aircraft": make_aircraft,
    "cars": make_cars,
    "imagenet": make_imagenet,
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstreams_layout_is_read(name, tmp_path):
    train, test, classes = UPSTREAM[name](tmp_path)
    splits = datasets.load(name, tmp_path, partial=True)
    assert (len(splits["train"]), len(splits["test"])) == (train, test)
    assert not set(splits["train"].images) & set(splits["test"].images)
    for split in splits.values():
        assert split.classes == classes
        assert set(split.labels) <= set(range(len(classes)))
        for image, label in zip(split.images, split.labels):
            assert image.exists()
            told = f"{image.parent.name}/{image.name}"
            if name in ("pets", "dtd", "indoor67", "cub", "imagenet"):  # whose paths name the class
                assert classes[label] in told


def test_labels_that_only_the_lists_know(tmp_path):
    make_flowers(tmp_path / "f")
    flowers = datasets.load("flowers", tmp_path / "f", partial=True)
    assert [p.name for p in flowers["train"].images] == [
        f"image_{n:05d}.jpg" for n in (1, 3, 5, 2, 4)
    ]  # train, then val
    assert flowers["train"].labels == [0, 1, 2, 0, 1]
    assert flowers["test"].labels == [2, 0, 1, 2]
    make_aircraft(tmp_path / "a")
    assert datasets.load("aircraft", tmp_path / "a", partial=True)["train"].labels == [0, 1, 2, 0, 1, 2]
    make_cars(tmp_path / "c")
    assert datasets.load("cars", tmp_path / "c", partial=True)["test"].labels == [0, 1]


@pytest.mark.parametrize("name", [n for n in UPSTREAM if n != "imagenet"])
def test_a_missing_image_is_named(name, tmp_path):
    UPSTREAM[name](tmp_path)
    victim = sorted(p for p in tmp_path.rglob("*.jpg") if not p.name.startswith("."))[0]
    victim.unlink()
    with pytest.raises(DatasetError, match=f"1 of .* images are missing under .*{victim.name}"):
        datasets.load(name, tmp_path)


def test_a_count_that_is_not_the_official_one_is_said(tmp_path, capsys):
    make_pets(tmp_path / "p")
    datasets.load("pets", tmp_path / "p")
    assert "train: 15 images, officially 3,680" in capsys.readouterr().err
    make_imagenet(tmp_path / "i")
    (tmp_path / "i" / "train" / "n01443537" / "n01443537_3.JPEG").unlink()
    with pytest.raises(
        DatasetError, match=r"35 images, officially 1,281,167.*fewest training images: n01443537 \(11\)"
    ):
        datasets.load("imagenet", tmp_path / "i")


def test_the_official_counts_are_those_of_the_paper():
    """Section 5 of the method's description: classes, train, test."""
    wanted = {
        "flowers": (102, 2040, 6149),
        "pets": (37, 3680, 3669),
        "dtd": (47, 3760, 1880),
        "indoor67": (67, 5360, 1340),
        "cub": (200, 5994, 5794),
        "aircraft": (100, 6667, 3333),
        "cars": (196, 8144, 8041),
        "imagenet": (1000, 1281167, 50000),
    }
    rows = {r[0]: r for r in datasets.table()}
    for name, figures in wanted.items():
        assert tuple(int(c.replace(",", "")) for c in rows[name][1:4]) == figures


def tar_of(path, folder, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for child in sorted(folder.iterdir()):
            file.add(child, child.name)


def test_imagenets_archives_are_unpacked_and_the_kit_gives_the_validation_labels(tmp_path, monkeypatch):
    make_imagenet(tmp_path / "made", 4)
    root, classes = tmp_path / "root", tmp_path / "classes"
    root.mkdir()
    classes.mkdir()
    for folder in sorted((tmp_path / "made" / "train").iterdir()):
        tar_of(classes / f"{folder.name}.tar", folder, "w")
    tar_of(root / "ILSVRC2012_img_train.tar", classes, "w")
    flat = tmp_path / "flat"
    flat.mkdir()
    labels = []
    for k, image in enumerate(sorted((tmp_path / "made" / "val").rglob("*.JPEG"))):
        shutil.copy(image, flat / f"ILSVRC2012_val_{k:08d}.JPEG")
        labels.append({"n01440764": 3, "n01443537": 1, "n01484850": 2}[image.parent.name])
    tar_of(root / "ILSVRC2012_img_val.tar", flat, "w")
    kit = tmp_path / "kit" / imagenet.DEVKIT / "data"
    synsets = np.zeros((3, 1), [("ILSVRC2012_ID", "O"), ("WNID", "O")])
    for k, (number, wnid) in enumerate(((3, "n01440764"), (1, "n01443537"), (2, "n01484850"))):
        synsets[k, 0] = (np.array([[number]]), np.array([wnid]))
    savemat(_made(kit / "meta.mat"), {"synsets": synsets})
    write(kit / "ILSVRC2012_validation_ground_truth.txt", labels)
    tar_of(root / f"{imagenet.DEVKIT}.tar.gz", tmp_path / "kit")
    with monkeypatch.context() as patch:  # first as for somebody who may only read the archives
        read_only(root, patch)
        before = sorted(root.iterdir())
        there = datasets.load("imagenet", root, partial=True, unpack_to=str(tmp_path / "beside"))
        assert sorted(root.iterdir()) == before
    splits = datasets.load("imagenet", root, partial=True)
    for found in (there, splits):
        assert len(found["train"]) == 12
        assert found["test"].labels == [0, 0, 1, 1, 2, 2]
    assert [path.is_dir() for path in tmp_path.glob("beside-*/train")] == [True]
    assert not list(root.glob("*unpacking*"))


def test_sin10k_takes_ten_of_each_class_the_same_everywhere(tmp_path):
    make_imagenet(tmp_path, 20)
    one = datasets.load("sin10k", tmp_path, seed=1)["train"]
    assert np.bincount(one.labels).tolist() == [10, 10, 10]
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "train", moved / "train")
    names = lambda split: [split.name(i) for i in range(len(split))]  # noqa: E731
    assert names(datasets.load("sin10k", moved, seed=1)["train"]) == names(one)
    assert names(datasets.load("sin10k", tmp_path, seed=2)["train"]) != names(one)
    # Pinned, so that a change of the choice, on whatever machine or version, is seen.
    assert names(datasets.load("sin10k", tmp_path, per_class=1)["train"]) == [
        "n01440764/n01440764_7.JPEG",
        "n01443537/n01443537_16.JPEG",
        "n01484850/n01484850_15.JPEG",
    ]
    unbalanced = datasets.load("sin10k-total", tmp_path, total=30, seed=1)["train"]
    assert len(set(unbalanced.images)) == 30
    with pytest.raises(DatasetError, match="fewer than 21"):
        datasets.load("sin10k", tmp_path, per_class=21)


def test_samples_are_random():
    """Each of 40 images is chosen 10 times in 40 on average, over seeds."""
    split = Split([Path(f"c/{k}.jpg") for k in range(40)], [0] * 40, ["c"])
    counts = np.zeros(40)
    for seed in range(400):
        for image in split.sample(seed, total=10).images:
            counts[int(image.stem)] += 1
    from scipy import stats

    assert stats.chisquare(counts).pvalue > 1e-3


# --- downloads and archives


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; understands Range; cuts the connection after `cut` bytes where that is set."""

    files, cut, seen = {}, None, []

    def do_GET(self):
        body = self.files.get(self.path.strip("/"))
        if body is None:
            self.send_error(404)
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        self.seen.append(start)
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + (self.cut or len(body))])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"files": {}, "seen": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{httpd.server_address[1]}/"
    yield handler
    httpd.shutdown()


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    body = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    server.files["a.bin"] = body
    (tmp_path / "sum").write_bytes(body)
    checksum = fetch.md5(tmp_path / "sum")
    server.cut = 100_000
    with pytest.raises(OSError):
        fetch.download(server.url + "a.bin", tmp_path / "a.bin", checksum)
    assert not (tmp_path / "a.bin").exists()
    server.cut = None
    fetch.download(server.url + "a.bin", tmp_path / "a.bin", checksum)
    assert (tmp_path / "a.bin").read_bytes() == body
    assert server.seen[0] == 0
    assert server.seen[-1] > 0
    with pytest.raises(DatasetError, match="MD5 differs"):
        fetch.download(server.url + "a.bin", tmp_path / "b.bin", "0" * 32)
    assert not list(tmp_path.glob("b.bin*"))


def test_a_download_that_is_too_long_is_not_taken(server, tmp_path, monkeypatch):
    """Two processes that appended to one file had made it so."""
    server.files["a.bin"] = b"x" * 1000
    real = fetch.tqdm

    def also_writes(*args, **options):
        with open(tmp_path / "a.bin.part", "ab") as file:
            file.write(b"y" * 2000)
        return real(*args, **options)

    monkeypatch.setattr(fetch, "tqdm", also_writes)
    with pytest.raises(OSError, match="2000 bytes came, and the server said 1000"):
        fetch.download(server.url + "a.bin", tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


UNPACK = """
import sys
from pathlib import Path
from idmm_fast import datasets
from idmm_fast.datasets import Source, Split
from types import SimpleNamespace
root = Path(sys.argv[1])
module = SimpleNamespace(
    SOURCE=Source("", 1, {"train": 3000}, "", "", {"jpg.tar": (None, None)}, ("jpg",), (".",)),
    read=lambda folder: {"train": Split(sorted((folder / "jpg").iterdir()), [0] * 3000, ["a"])},
)
datasets._module = lambda name: module
print(len(datasets.load("some", root)["train"].images))
"""


@pytest.mark.integration
def test_two_processes_that_unpack_the_same_archive_both_have_all_of_it(tmp_path):
    """Each had removed what the other was unpacking."""
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "jpg.tar", "w") as archive:
        for k in range(3000):
            archive.addfile(tarfile.TarInfo(f"jpg/{k:04d}.jpg"), io.BytesIO())
    command = [sys.executable, "-c", UNPACK, str(tmp_path / "raw")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    assert [process.communicate(timeout=100)[0] for process in both] == ["3000\n", "3000\n"]
    assert len(list((tmp_path / "raw" / "jpg").iterdir())) == 3000
    assert not (tmp_path / "raw" / ".lock").exists()


def test_a_dataset_is_downloaded_unpacked_and_read(server, tmp_path, monkeypatch):
    from idmm_fast.datasets import pets

    made = tmp_path / "made"
    make_pets(made)
    for part in ("images", "annotations"):
        folder = tmp_path / f"only_{part}"
        shutil.copytree(made / part, folder / part)
        tar_of(tmp_path / f"{part}.tar.gz", folder)
        server.files[f"{part}.tar.gz"] = (tmp_path / f"{part}.tar.gz").read_bytes()
    files = {
        f"{p}.tar.gz": (f"{server.url}{p}.tar.gz", fetch.md5(tmp_path / f"{p}.tar.gz"))
        for p in ("images", "annotations")
    }
    monkeypatch.setattr(pets, "SOURCE", Source(**{**vars(pets.SOURCE), "files": files}))
    assert len(datasets.load("pets", tmp_path / "raw", partial=True)["train"]) == 15
    before = len(server.seen)
    datasets.load("pets", tmp_path / "raw", partial=True)
    assert len(server.seen) == before  # what is there is not fetched again


@pytest.mark.parametrize("name", [n for n in datasets.names() if n not in ("folder", "webdataset", "hf", "demo")])
def test_without_network_a_sentence_gives_address_files_and_place(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", refuse)
    with pytest.raises(DatasetError) as said:
        datasets.load(name, tmp_path / "empty")
    source = datasets._module(name).SOURCE
    for wanted in (source.address, *source.files, str(tmp_path / "empty"), "--root"):
        assert wanted in str(said.value)


def test_without_network_the_demo_says_where_to_get_it(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr(demo, "DEBIAN", tmp_path / "none")
    with pytest.raises(DatasetError, match="apt-get install dataset-fashion-mnist"):
        datasets.load("demo", tmp_path / "empty")


def bad_tar(path, member, data=b"x", **kwargs):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo(member)
        info.size = len(data) if "type" not in kwargs else 0
        for key, value in kwargs.items():
            setattr(info, key, value)
        file.addfile(info, io.BytesIO(data))


@pytest.fixture(params=["filter", "no filter"])
def unpack(request, monkeypatch):
    """fetch.unpack with tarfile's filter, and as where Python has none."""
    if request.param == "no filter":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filter")
    return fetch.unpack


@pytest.mark.parametrize(
    ("member", "extra"),
    [
        ("../out.txt", {}),
        ("/tmp/out.txt", {}),
        ("a/../../out.txt", {}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "../../secret"}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "../../secret"}),
        ("device", {"type": tarfile.CHRTYPE}),
    ],
)
def test_archives_do_not_reach_out_of_their_folder(unpack, tmp_path, member, extra):
    bad_tar(tmp_path / "bad.tar", member, **extra)
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DatasetError, match="was not unpacked"):
        unpack(tmp_path / "bad.tar", target)
    assert list(target.iterdir()) == []
    assert not (tmp_path / "out.txt").exists()


def test_tar_zip_and_bombs(unpack, tmp_path):
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as file:
        file.writestr("a/b.txt", "hello")
    unpack(tmp_path / "good.zip", tmp_path / "good")
    assert (tmp_path / "good" / "a" / "b.txt").read_text() == "hello"
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as file:
        file.add(tmp_path / "good", "./tree")
    unpack(tmp_path / "good.tar.gz", tmp_path / "good")
    assert (tmp_path / "good" / "tree" / "a" / "b.txt").read_text() == "hello"
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as file:
        file.writestr("../out.txt", "x")
    with pytest.raises(DatasetError, match="leads out"):
        unpack(tmp_path / "out.zip", tmp_path / "good")
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("zeros")
        info.size = 200 << 20
        file.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(DatasetError, match="more than an archive of its size should"):
        unpack(tmp_path / "bomb.tar.gz", tmp_path / "good")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "bomb.tar.gz").read_bytes()[:1000])
    with pytest.raises(DatasetError, match="was not unpacked"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "good")


def test_an_archive_may_fill_the_space_that_is_free_before(unpack, tmp_path, monkeypatch):
    """What it has unpacked already is not counted twice."""
    for n in range(8):
        _made(tmp_path / "made" / f"{n}").write_bytes(bytes(100_000))
    tar_of(tmp_path / "a.tar", tmp_path / "made", "w")

    def usage(folder):
        return SimpleNamespace(free=space - sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    space = 790_000
    with pytest.raises(DatasetError, match="are free at"):
        unpack(tmp_path / "a.tar", tmp_path / "less")
    space = 800_000
    unpack(tmp_path / "a.tar", tmp_path / "enough")
    assert len(list((tmp_path / "enough").iterdir())) == 8


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_damage_late_in_a_compressed_archive_is_noticed(unpack, tmp_path, compression):
    """Where tarfile itself reads no more, too: of two files the second is random, and zeros follow."""
    made, archive, target = tmp_path / "made", tmp_path / "a.tgz", tmp_path / "target"
    _made(made / "1.txt").write_text("text\n" * 10_000)
    (made / "2.bin").write_bytes(np.random.default_rng(0).bytes(40_000))
    tar_of(archive, made, f"w:{compression}")
    whole = archive.read_bytes()
    for place in (len(whole) // 2, len(whole) * 9 // 10, len(whole) - 12):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(DatasetError, match=r"(?s)a\.tgz was not unpacked: .*delete it and run the"):
            unpack(archive, target)
        assert list(target.iterdir()) == []
    archive.write_bytes(whole[:-6])
    with pytest.raises(DatasetError, match="was not unpacked"):
        unpack(archive, target)
    archive.write_bytes(whole)
    unpack(archive, target)
    assert [(target / f.name).read_bytes() == f.read_bytes() for f in made.iterdir()] == [True, True]


def test_errors_of_the_disk_are_not_taken_for_damage(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    tar_of(tmp_path / "a.tgz", make_two(tmp_path / "made"))
    monkeypatch.setattr(fetch, "_extract", full)
    with pytest.raises(OSError, match="No space left"):
        fetch.unpack(tmp_path / "a.tgz", tmp_path / "target")


# --- mirrors


# What mirrors make of upstream's layouts: {where upstream has it: where the mirror has it}.
MIRRORS = {
    "pets": {"images": "images/images", "annotations": "annotations/annotations"},
    "cars": {"cars_train": "cars_train/cars_train", "cars_test": "cars_test/cars_test", "devkit": "car_devkit/devkit"},
    "indoor67": {"Images": "indoorCVPR_09/Images"},
    "flowers": {"jpg": "flowers-102/jpg"},
    "aircraft": {"fgvc-aircraft-2013b": "fgvc-aircraft-2013b/fgvc-aircraft-2013b"},
    "dtd": {"dtd/labels": "dtd/labels/labels"},
    "cub": {"CUB_200_2011/images": "CUB_200_2011/images/images"},
    "imagenet": {"train": "imagenet/train", "val": "val/val"},
    "sin10k": {"train": "train/train"},
}


def move(root, there, here):
    (root / there).rename(root / "moving")
    _made(root / here)
    (root / "moving").rename(root / here)


@pytest.mark.parametrize("name", MIRRORS)
def test_mirrors_layouts_are_read_as_upstreams(name, tmp_path):
    for place in ("upstream", "mirror"):
        UPSTREAM.get(name, make_imagenet)(tmp_path / place)
    for there, here in MIRRORS[name].items():
        move(tmp_path / "mirror", there, here)
    (tmp_path / "mirror" / "readme.txt").write_text("a mirror")
    wanted, found = (datasets.load(name, tmp_path / place, partial=True) for place in ("upstream", "mirror"))
    assert list(found) == list(wanted)
    for split, content in wanted.items():
        assert (found[split].labels, found[split].classes) == (content.labels, content.classes)
        assert [path.name for path in found[split].images] == [path.name for path in content.images]
        assert [path.read_bytes() for path in found[split].images] == [path.read_bytes() for path in content.images]


@pytest.mark.parametrize(("name", "split"), [("imagenet", "train"), ("imagenet", "val"), ("sin10k", "train")])
def test_an_imagenet_split_without_images_is_refused(name, split, tmp_path):
    make_imagenet(tmp_path)
    for path in (tmp_path / split).rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(DatasetError, match=rf"/{split} has no images in class folders \(n01440764/"):
        datasets.load(name, tmp_path, partial=True)


def test_a_copy_inside_a_folder_does_not_take_its_place(tmp_path):
    make_pets(tmp_path)
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "images" / "images")
    images = datasets.load("pets", tmp_path, partial=True)["train"].images
    assert {path.parent for path in images} == {tmp_path / "images"}


def test_before_a_download_it_is_said_what_is_missing(tmp_path, monkeypatch, capsys):
    told = []

    def refuse(url, path, checksum):
        told.append(capsys.readouterr().err)
        raise OSError("no network")

    monkeypatch.setattr(raw_files, "download", refuse)
    make_pets(tmp_path / "some")
    (tmp_path / "some" / "annotations" / "test.txt").unlink()
    holds = f"{tmp_path}/some holds annotations, images, but not annotations/test.txt"
    with pytest.raises(DatasetError, match=f"{holds}, and could not be fetched"):
        datasets.load("pets", tmp_path / "some")
    assert told == [f"{holds}; downloading images.tar.gz, annotations.tar.gz to it (0.8 GB in all)\n"]
    with pytest.raises(DatasetError, match=r"not under .*empty \(images, annotations/trainval\.txt, annotations/test"):
        datasets.load("pets", tmp_path / "empty")
    assert told[1:] == [""]


@pytest.mark.parametrize("splits", [("train", "test"), ("",)])
def test_a_mirror_of_class_folders_is_told_how_to_convert_it(splits, tmp_path, monkeypatch):
    """As of cars by classes: car_data/car_data/train/CLASS/*. Nothing is downloaded, and the command works."""

    def refuse(*args):
        raise OSError("a download began")

    monkeypatch.setattr(raw_files, "download", refuse)
    root = tmp_path / "car_data"
    for split in splits:
        for c in range(19):
            for n in range(2):
                photo(root / "car_data" / split / f"breed {c}" / f"{n}.jpg", c)
    with pytest.raises(DatasetError, match=r"19 folders of classes \(breed 0, breed 1, \.\.\.\)") as said:
        datasets.load("pets", root)
    assert "holds car_data, but not images, annotations/trainval.txt, annotations/test.txt" in str(said.value)
    share = ["--test-share", "0.2"] if splits == ("",) else []
    advice = ["--ds", "folder", "--root", str(root), *share]
    assert f"convert them with {' '.join(advice)}. For the official splits get images.tar.gz," in str(said.value)
    assert script(*advice, "--out", tmp_path / "out").returncode == 0
    assert len(open_beton(tmp_path / "out" / "folder_test.beton").classes) == 19
    shutil.rmtree(root)
    photo(root / "one" / "1.jpg", 1)
    photo(root / "two" / "1.jpg", 1)
    with pytest.raises(DatasetError, match="a download began"):  # two classes are not pets' 37
        datasets.load("pets", root)


@pytest.mark.parametrize("there", ["indoorCVPR_09.tar", "Images"])
def test_a_download_that_stopped_before_its_lists_goes_on(server, tmp_path, monkeypatch, there):
    """The archive is there, or unpacked already: its 67 classes are not refused, and it is not fetched again."""
    made, root = tmp_path / "made", tmp_path / "raw"
    names = [f"room {c:02d}/{n}.jpg" for c in range(67) for n in range(2)]
    for name in names:
        photo(made / "Images" / name, len(name))
    tar_of(_made(root / "indoorCVPR_09.tar"), made, "w")
    if there == "Images":
        shutil.move(made / "Images", root / "Images")
        (root / "indoorCVPR_09.tar").unlink()
    server.files["TrainImages.txt"] = "\n".join(names[::2]).encode()
    server.files["TestImages.txt"] = "\n".join(names[1::2]).encode()
    unpacked = []
    fetched = {name: (server.url + name, None) for name in indoor67.SOURCE.files}
    monkeypatch.setattr(indoor67, "SOURCE", replace(indoor67.SOURCE, files=fetched))
    monkeypatch.setattr(raw_files, "unpack", lambda *paths: unpacked.append(paths[0].name) or fetch.unpack(*paths))
    splits = datasets.load("indoor67", root, partial=True)
    assert [len(splits[split]) for split in ("train", "test")] == [67, 67]
    assert server.seen == [0, 0]
    assert unpacked == [there] * (there != "Images")


# --- raw files that may only be read


def read_only(root, monkeypatch):
    """As for a user who may not write below `root`; root itself may write anywhere."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(root) and access(path, mode))


def test_archives_that_may_only_be_read_are_unpacked_beside_the_output(tmp_path, monkeypatch):
    """One of two is unpacked already: what is there is used from where it is."""
    made, root, out = tmp_path / "made", tmp_path / "raw", tmp_path / "out"
    make_pets(made)
    shutil.copytree(made / "images", root / "images")
    shutil.copytree(made / "annotations", tmp_path / "only" / "annotations")
    tar_of(root / "annotations.tar.gz", tmp_path / "only")
    before = sorted(root.rglob("*"))
    read_only(root, monkeypatch)
    for _ in range(2):
        done = script("--ds", "pets", "--root", root, "--out", out)
        assert done.returncode == 0, done.stderr
        assert f"{root} can't be written, so what is unpacked or downloaded goes to {out}/raw/pets-" in done.stderr
        assert len(open_beton(out / "pets_train.beton")) == 15
    assert sorted(root.rglob("*")) == before
    (beside,) = (out / "raw").iterdir()
    assert (beside / "annotations" / "test.txt").is_file()
    assert (beside / "images").resolve() == root / "images"


def archives_of_pets(root, value):
    """ROOT/images.tar.gz and ROOT/annotations.tar.gz with images of one colour; the bytes of the training images."""
    made = root.with_name(f"{root.name}_{value}_made")
    make_pets(made)
    for path in made.glob("images/[!.]*.jpg"):
        photo(path, value)
    for part in ("images", "annotations"):
        shutil.copytree(made / part, made / "only" / part / part)
        root.mkdir(exist_ok=True)
        tar_of(root / f"{part}.tar.gz", made / "only" / part)
    return [path.read_bytes() for path in datasets.load("pets", made, partial=True)["train"].images]


def test_links_to_raw_files_that_are_right_are_not_made_anew(tmp_path, monkeypatch):
    """Another conversion may read through them; those whose files have moved are mended, those without one removed."""
    root, out = tmp_path / "raw", tmp_path / "out" / "pets"
    archives_of_pets(root, 100)
    for name in ("a.jpg", "b.jpg"):
        photo(root / name, 1)
    read_only(root, monkeypatch)
    beside = raw_files.writable_root(pets.SOURCE, root, out)
    made = {path.name: path.lstat().st_ino for path in beside.iterdir()}
    (root / "b.jpg").unlink()
    (beside / "a.jpg").unlink()
    (beside / "a.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert raw_files.writable_root(pets.SOURCE, root, out) == beside
    assert (beside / "a.jpg").resolve() == root / "a.jpg"
    assert not os.path.lexists(beside / "b.jpg")
    kept = {path.name: path.lstat().st_ino for path in beside.iterdir() if path.name != "a.jpg"}
    assert kept == {"images.tar.gz": made["images.tar.gz"], "annotations.tar.gz": made["annotations.tar.gz"]}


def test_another_folders_archives_are_not_taken_for_those_unpacked_before(tmp_path, monkeypatch):
    """Nor is an earlier download for the folder that is named, nor an old archive for a newer one of the same name."""
    roots = [tmp_path / "a", tmp_path / "b"]
    make_pets(tmp_path / "out" / "pets")
    for root in roots:
        read_only(root, monkeypatch)

    def loaded(root):
        splits = datasets.load("pets", root, partial=True, unpack_to=str(tmp_path / "out" / "pets"))
        return [path.read_bytes() for path in splits["train"].images]

    wanted = [archives_of_pets(root, value) for root, value in zip(roots, (100, 200))]
    assert wanted[0] != wanted[1]
    assert [loaded(root) for root in roots] == wanted
    assert loaded(roots[0]) == wanted[0]
    newer = archives_of_pets(roots[0], 250)
    assert loaded(roots[0]) == newer != wanted[0]


def test_unpacking_writes_nothing_into_a_folder_that_may_only_be_read(tmp_path, monkeypatch):
    """Both archives are there, the images unpacked but for one, another changed; and what an unpacking left behind."""
    root = tmp_path / "raw"
    wanted = archives_of_pets(root, 100)
    shutil.copytree(tmp_path / "raw_100_made" / "images", root / "images")
    (root / "images" / "Abyssinian_1.jpg").unlink()
    (root / "images" / "Abyssinian_2.jpg").write_bytes(b"changed")
    (root / "images" / "notes.txt").write_text("mine")
    for leftover in (".images.tar.gz.unpacking", "train.unpacking"):
        (root / leftover).mkdir()
        (root / leftover / "half.jpg").write_bytes(b"half")
    (root / "other.zip.part").write_bytes(b"part")

    def state():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in root.rglob("*")}

    before = state()
    read_only(root, monkeypatch)
    for _ in range(2):
        splits = datasets.load("pets", root, partial=True, unpack_to=str(tmp_path / "out" / "pets"))
        assert [path.read_bytes() for path in splits["train"].images] == wanted
        assert state() == before
        (beside,) = (tmp_path / "out").iterdir()
        assert (beside / "images" / "notes.txt").read_text() == "mine"
        assert sorted(os.listdir(beside)) == ["annotations", "annotations.tar.gz", "images", "images.tar.gz"]


def test_links_to_raw_files_that_moved_are_made_anew(tmp_path, monkeypatch):
    root, store = tmp_path / "raw", tmp_path / "store"
    archives_of_pets(root, 100)
    make_pets(store / "old")
    (root / "images.tar.gz").unlink()
    (root / "images").symlink_to(store / "old" / "images")
    read_only(root, monkeypatch)
    for place in ("old", "new"):
        if place == "new":
            (store / "old").rename(store / "new")
            (root / "images").unlink()
            (root / "images").symlink_to(store / "new" / "images")
        images = datasets.load("pets", root, partial=True, unpack_to=str(tmp_path / "out"))["train"].images
        assert {path.resolve().parent for path in images} == {store / place / "images"}


def test_raw_files_that_may_only_be_read_and_are_complete_are_read_where_they_are(tmp_path, monkeypatch, capsys):
    make_pets(tmp_path / "raw")
    read_only(tmp_path / "raw", monkeypatch)
    splits = datasets.load("pets", tmp_path / "raw", partial=True, unpack_to=str(tmp_path / "other"))
    assert {path.parent for path in splits["train"].images} == {tmp_path / "raw" / "images"}
    assert not (tmp_path / "other").exists()
    assert capsys.readouterr().err == ""


WRITABLE = """
import os, sys
from pathlib import Path
from idmm_fast.datasets.raw_files import _writable
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
print([_writable(Path(path)) for path in sys.argv[1:]])
"""


def test_whether_a_folder_can_be_written_is_that_of_the_nearest_that_exists(request):
    root = Path(tempfile.mkdtemp())  # pytest's folders are for one user
    request.addfinalizer(lambda: shutil.rmtree(root))
    for name, mode in (("open", 0o777), ("shut", 0o555)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    root.chmod(0o755)
    asked = [root / name for name in ("open", "shut", "open/new/er", "shut/new")]
    done = subprocess.run([sys.executable, "-c", WRITABLE, *asked], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[True, False, True, False]", done.stderr


# --- what people already have


def test_demo_reads_idx_files_and_balances_classes(tmp_path):
    rng = np.random.default_rng(0)
    for stem, n in (("train", 3000), ("t10k", 50)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for what, array, dims in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            head = bytes([0, 0, 8, dims]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{stem}-{what}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
        if stem == "train":
            wanted = images
    splits = datasets.load("demo", tmp_path)
    assert len(splits["train"]) == 2040
    assert np.bincount(splits["train"].labels).tolist() == [204] * 10
    assert np.array_equal(splits["train"].images[7], wanted[7])
    assert len(splits["test"]) == 50


def test_a_truncated_file_of_the_demo_is_said_to_be_damaged(tmp_path):
    """It was a traceback, and the file was never fetched again."""
    for stem in ("train", "t10k"):
        for what, sizes in (("images-idx3", (30, 28, 28)), ("labels-idx1", (30,))):
            head = bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">u4").tobytes()
            (tmp_path / f"{stem}-{what}-ubyte.gz").write_bytes(gzip.compress(head + bytes(np.prod(sizes))))
    datasets.load("demo", tmp_path, partial=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    middle = len(whole) // 2
    bad = bytes(b ^ 255 for b in whole[middle : middle + 9])
    damaged = whole[:middle], b"", b"<html>", whole[:middle] + bad + whole[middle + 9 :], gzip.compress(head)
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=f"^{re.escape(str(file))} is damaged: delete it and run again"):
            datasets.load("demo", tmp_path, partial=True)


def test_folder_forms(tmp_path):
    for split in ("train", "val"):
        for c in ("b", "a"):
            photo(tmp_path / "two" / split / c / "deep" / "1.JPG", 5)
    splits = datasets.load("folder", tmp_path / "two")
    assert set(splits) == {"train", "test"}
    assert splits["test"].classes == ["a", "b"]
    assert splits["test"].labels == [0, 1]
    photo(tmp_path / "flat" / "1.png", 1)
    assert datasets.load("folder", tmp_path / "flat")["train"].classes == ["all"]
    photo(tmp_path / "two" / "val" / "c" / "1.png", 1)
    with pytest.raises(DatasetError, match="classes that the training split does not"):
        datasets.load("folder", tmp_path / "two")
    (tmp_path / "none" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match="No image"):
        datasets.load("folder", tmp_path / "none")


def test_a_fraction_of_each_class_is_held_out_the_same_everywhere(tmp_path):
    for c, count in (("a", 10), ("b", 3), ("c", 1)):
        for n in range(count):
            photo(tmp_path / "mine" / c / f"{n}.jpg", n)
    out = tmp_path / "out"
    options = ("--ds", "folder", "--out", out, "--test-share", "0.2")
    assert script(*options, "--root", tmp_path / "mine").returncode == 0
    labels = {split: open_beton(out / f"folder_{split}.beton").label for split in ("train", "test")}
    assert np.bincount(labels["train"], minlength=3).tolist() == [8, 2, 1]
    assert np.bincount(labels["test"], minlength=3).tolist() == [2, 1, 0]
    whole = datasets.load("folder", tmp_path / "mine")["train"]
    train, test = whole.hold_out(0.2, 0)
    assert sorted([*train.images, *test.images]) == whole.images
    # Pinned, so that a change of the choice, on whatever machine or version, is seen.
    assert [test.name(i) for i in range(3)] == ["a/0.jpg", "a/8.jpg", "b/0.jpg"]
    assert whole.hold_out(0.2, 1)[1].images != test.images
    refused = script(*options, "--root", make_two(tmp_path / "two"))
    assert refused.returncode == 1
    assert "has a test split; leave out --test-share" in refused.stderr
    assert script(*options[:-1], "1.5", "--root", tmp_path / "mine").returncode == 2


@pytest.mark.parametrize(("choice", "number"), [("per_class", 8), ("total", 12), ("subset", 10)])
def test_a_sample_has_no_image_of_the_test_split_that_is_held_out(tmp_path, choice, number):
    """In one conversion, and in two: a small training set may be tested on the test split of the whole."""
    for n in range(20):
        photo(tmp_path / "mine" / "ab"[n % 2] / f"{n}.jpg", n)
    whole = datasets.load("folder", tmp_path / "mine", test_share=0.2)
    assert [len(split) for split in whole.values()] == [16, 4]
    apart = datasets.load("folder", tmp_path / "mine", **{choice: number})["train"]
    at_once = datasets.load("folder", tmp_path / "mine", test_share=0.2, **{choice: number})
    for few in (apart, at_once["train"]):
        assert len(few) == (16 if choice == "per_class" else number)
        assert not set(few.images) & set(whole["test"].images)
    assert at_once["test"].images == whole["test"].images


def test_images_right_under_the_root_are_chosen_the_same_whatever_it_is_called(tmp_path, monkeypatch):
    for n in range(12):
        photo(tmp_path / "photos" / f"{n}.jpg", n)
    write(tmp_path / "photos" / "labels.csv", ["file,label", *(f"{n}.jpg,{'ab'[n % 2]}" for n in range(12))])
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")

    def chosen(root, **options):
        splits = datasets.with_test_split(datasets.load("folder", Path(root), **options), 0.3, 0)
        small = datasets.load("folder", Path(root), subset=4, **options)["train"]
        return [[split.name(i) for i in range(len(split))] for split in (*splits.values(), small)]

    for options in ({}, {"labels": "labels.csv"}):
        monkeypatch.chdir(tmp_path)
        wanted = chosen("photos", **options)
        assert [len(names) for names in wanted] == [8, 4, 4]
        assert set(wanted[0] + wanted[1]) == {f"{n}.jpg" for n in range(12)}
        assert chosen("copy", **options) == chosen(tmp_path / "copy", **options) == wanted
        monkeypatch.chdir(tmp_path / "photos")
        assert chosen(".", **options) == chosen("../copy", **options) == wanted


@pytest.mark.parametrize("option", ["--per-class=1", "--total=1", "--test-share=0.2"])
def test_to_choose_training_images_there_must_be_some(tmp_path, option):
    photo(tmp_path / "mine" / "test" / "1.jpg", 1)
    refused = script("--ds", "folder", "--root", tmp_path / "mine", "--out", tmp_path / "out", option)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: there are no training images to ")
    assert "only those of: test. Add a training split" in refused.stderr


def test_betons_and_lists_of_an_earlier_conversion_are_warned_of(tmp_path):
    for n in range(10):
        photo(tmp_path / "mine" / "ab"[n % 2] / f"{n}.jpg", n)
    out = tmp_path / "out"
    options = ("--ds", "folder", "--root", tmp_path / "mine", "--out", out, "--name", "mine")
    small = script(*options, "--test-share=0.2", "--subset=6")
    assert "warning" not in small.stderr
    assert sorted(path.name for path in out.glob("*.txt")) == ["mine_test.txt", "mine_train.txt"]
    whole = script(*options)
    assert (
        f"warning: {out}/mine_test.beton is of an earlier conversion, and its images may be in {out}/mine_train.beton "
        "too: delete it, or convert again with the options that made it\n"
    ) in whole.stderr
    lists = f"warning: {out}/mine_train.txt was there before: it does not list mine_train.beton\n"
    assert lists in whole.stderr
    for path in out.glob("*.txt"):
        path.unlink()
    assert "warning" not in script(*options, "--test-share=0.2").stderr


def make_two(root):
    for split in ("train", "test"):
        photo(root / split / "a" / "1.jpg", 5)
    return root


def test_a_list_of_somebody_else_is_not_written_over(tmp_path):
    notes = tmp_path / "out" / "folder_train.txt"
    write(notes, ["my own notes"])
    refused = script("--ds", "folder", "--root", make_two(tmp_path / "in"), "--out", tmp_path / "out", "--subset", 1)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {notes} is of no conversion that is there, and the list of the chosen")
    assert notes.read_text() == "my own notes\n"
    assert [path.name for path in notes.parent.iterdir()] == [notes.name]


def test_a_list_of_chosen_images_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    options = "--ds", "folder", "--root", make_two(tmp_path / "in"), "--out", tmp_path / "out", "--subset", 1
    assert script(*options).returncode == 0
    listed = tmp_path / "out" / "folder_train.txt"
    assert listed.read_text() == "a/1.jpg\n"
    write_text = Path.write_text

    def half(self, text, **given):
        if ".txt" not in self.name:
            return write_text(self, text, **given)
        write_text(self, text[:3], **given)
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", half)
    failed = script(*options)
    assert (failed.returncode, "the disk is full" in failed.stderr) == (1, True)
    assert listed.read_text() == "a/1.jpg\n"
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.fixture
def shards(tmp_path, photos):
    """Two WebDataset shards of five samples: KEY.jpg, and KEY.cls or KEY.json."""
    for shard in range(2):
        with tarfile.open(_made(tmp_path / "shards" / f"{shard:03d}.tar"), "w") as file:
            for k in range(5):
                buffer = io.BytesIO()
                Image.fromarray(photos[5 * shard + k]).save(buffer, "JPEG", quality=90)
                label = 3 * (k % 2)
                for extension, data in (
                    ("jpg", buffer.getvalue()),
                    ("cls", b"%d" % label) if shard == 0 else ("json", json.dumps({"label": label}).encode()),
                ):
                    info = tarfile.TarInfo(f"{shard}_{k}.{extension}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    return tmp_path / "shards"


@pytest.mark.parametrize("pattern", ["{000..001}.tar", "*.tar"])
def test_webdataset_is_read_where_it_lies(shards, photos, pattern):
    split = datasets.load("webdataset", None, shards=f"{shards}/{pattern}")["train"]
    assert split.labels == [0, 1, 0, 1, 0] * 2
    assert split.classes == ["0", "3"]
    for image, source in zip(photos, split.images):
        found = np.asarray(Image.open(io.BytesIO(source.read_bytes()))).astype(int)
        assert np.abs(found - image).mean() < 6
    with pytest.raises(DatasetError, match=r"002\.tar"):
        datasets.load("webdataset", None, shards=f"{shards}/{{000..002}}.tar")
    with pytest.raises(DatasetError, match="needs --shards"):
        datasets.load("webdataset", None)


def test_a_label_that_is_null_is_none(tmp_path, photos):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for key, label in enumerate((None, 0, "")):
            members = ((f"{key}.jpg", photo_bytes(photos[key])), (f"{key}.json", json.dumps({"label": label}).encode()))
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    shards = str(tmp_path / "a.tar")
    with pytest.raises(DatasetError, match=r"2 of 3 images have no label .*first .*0\.jpg"):
        datasets.load("webdataset", None, shards=shards)
    assert datasets.load("webdataset", None, shards=shards, no_labels="yes")["train"].classes == ["all"]


@pytest.mark.parametrize("damage", ["a header", "cut between members", "cut in a header"])
def test_a_damaged_tar_is_not_read_in_part(shards, tmp_path, damage):
    """tarfile takes what is not a header for the end of the archive."""
    whole = (shards / "000.tar").read_bytes()
    with tarfile.open(shards / "000.tar") as file:
        offset = file.getmembers()[4].offset
    changed = bytearray(whole)
    changed[offset + 3] ^= 1
    data = {"a header": bytes(changed), "cut between members": whole[:offset], "cut in a header": whole[: offset + 99]}
    (tmp_path / "bad.tar").write_bytes(data[damage])
    with pytest.raises(DatasetError, match=rf"bad\.tar is not .*damaged or cut short, at byte {offset}"):
        datasets.load("webdataset", None, shards=str(tmp_path / "bad.tar"))
    with pytest.raises(DatasetError, match=rf"bad\.tar was not unpacked: .*at byte {offset}"):
        fetch.unpack(tmp_path / "bad.tar", tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())


def shard_of(path, **labels):
    """A shard of images with these labels, bytes of a .cls each."""
    with tarfile.open(path, "w") as file:
        for k, (name, label) in enumerate(labels.items()):
            for extension, data in (("jpg", photo_bytes(np.full((8, 8, 3), k, np.uint8))), ("cls", label)):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return str(path)


def test_labels_of_a_webdataset_that_can_not_be_read_are_named_or_not_looked_at(tmp_path):
    shard = shard_of(tmp_path / "a.tar", x=b"0", y=b"\xff\0")
    with pytest.raises(DatasetError, match=r"a\.tar: the label in y\.cls can't be read"):
        datasets.load("webdataset", None, shards=shard)
    assert datasets.load("webdataset", None, shards=shard, no_labels="yes")["train"].classes == ["all"]


def test_classes_of_a_webdataset_have_one_order(tmp_path):
    """Numbers as numbers, equal ones as text; what only looks like a digit is text."""
    shard = shard_of(tmp_path / "a.tar", x=b"10", y=b"1", z=b"01", w=b"2")
    assert datasets.load("webdataset", None, shards=shard)["train"].classes == ["01", "1", "2", "10"]
    shard = shard_of(tmp_path / "b.tar", x="²".encode(), y=b"10")
    assert datasets.load("webdataset", None, shards=shard)["train"].classes == ["10", "²"]


def test_negative_labels_of_hugging_face_are_none(tmp_path, photos):
    """-100 is what its losses leave out."""
    import datasets as hf

    rows = {"image": [Image.fromarray(photos[k]) for k in range(4)], "label": [0, 1, -1, -100]}
    hf.DatasetDict(train=hf.Dataset.from_dict(rows).cast_column("image", hf.Image())).save_to_disk(str(tmp_path / "x"))
    split = datasets.load("hf", None, name=str(tmp_path / "x"))["train"]
    assert (split.labels, split.classes) == ([0, 1, -1, -1], ["0", "1"])


def test_hidden_members_of_a_webdataset_are_passed_over_as_in_folders(tmp_path, photos):
    """macOS's tar writes ._NAME beside each file; "./" before a name hides nothing, nor does the path of all images."""
    members = {
        "./._a.jpg": b"\0\5\x16\7",
        "./a.jpg": photo_bytes(photos[0]),
        "./a.cls": b"x",
        "b.jpg": photo_bytes(photos[1]),
        "b.cls": b"y",
        "__MACOSX/c.jpg": b"",
        "d/.d.jpg": b"",
        "home/.cache/f.jpg": photo_bytes(photos[3]),
        "home/.cache/f.cls": b"y",
        "../e.jpg": photo_bytes(photos[2]),
        "../e.cls": b"x",
    }
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    split = datasets.load("webdataset", None, shards=str(tmp_path / "a.tar"))["train"]
    assert split.names == ["./a.jpg", "b.jpg", "home/.cache/f.jpg", "../e.jpg"]
    assert [split.classes[label] for label in split.labels] == ["x", "y", "y", "x"]
    assert [(entry["count"], entry["first"]) for entry in split.left_out] == [(3, f"{tmp_path}/a.tar:./._a.jpg")]


def test_hugging_faces_datasets_are_read_from_disk(tmp_path, photos):
    import datasets as hf

    features = hf.Features({"img": hf.Image(), "fine": hf.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [Image.fromarray(p) for p in photos[:6]], "fine": [0, 1, 1, 0, 1, 0]}
    table = hf.Dataset.from_dict(rows, features=features)
    hf.DatasetDict({"train": table, "validation": table.select(range(2))}).save_to_disk(str(tmp_path / "saved"))
    splits = datasets.load("hf", None, name=str(tmp_path / "saved"))
    assert splits["train"].labels == [0, 1, 1, 0, 1, 0]
    assert splits["test"].classes == ["cat", "dog"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(splits["train"].images[3].read_bytes()))), photos[3])
    with pytest.raises(DatasetError, match="needs --name"):
        datasets.load("hf", None)


def rows_of(hf, photos, **columns):
    """A table of the package `datasets`: a photograph a row, and columns as {name: (kind, values)}."""
    count = len(next(iter(columns.values()))[1])
    features = hf.Features({"image": hf.Image()} | {name: kind for name, (kind, _) in columns.items()})
    pictures = [Image.fromarray(p) for p in photos[:count]]
    return hf.Dataset.from_dict({"image": pictures} | {n: v for n, (_, v) in columns.items()}, features=features)


@pytest.mark.parametrize(
    ("kind", "values", "classes", "labels"),
    [
        ("int64", [10, 2, 10, -1], ["2", "10"], [1, 0, 1, -1]),
        ("string", ["dog", "cat", "dog", None], ["cat", "dog"], [1, 0, 1, -1]),
    ],
)
def test_hugging_faces_numbers_and_text_become_classes(tmp_path, photos, kind, values, classes, labels):
    import datasets as hf

    train = rows_of(hf, photos, label=(hf.Value(kind), values), other=(hf.Value("int64"), [5, 6, 7, 8]))
    hf.DatasetDict({"train": train, "test": train.select([1])}).save_to_disk(str(tmp_path / "d"))
    splits = datasets.load("hf", None, name=str(tmp_path / "d"))
    assert (splits["train"].classes, splits["train"].labels) == (classes, labels)
    assert (splits["test"].classes, splits["test"].labels) == (classes, [0])
    by_name = datasets.load("hf", None, name=str(tmp_path / "d"), label_column="other")["train"]
    assert by_name.classes == ["5", "6", "7", "8"]
    with pytest.raises(DatasetError, match=r"no column nothing \(columns: image, label, other\)"):
        datasets.load("hf", None, name=str(tmp_path / "d"), label_column="nothing")


def test_of_a_row_of_hugging_faces_only_the_image_is_read(tmp_path, photos):
    """Whatever is in the other columns: images had been left out where a mask is damaged."""
    import datasets as hf

    damaged = {"bytes": b"no image", "path": None}
    table = rows_of(hf, photos, label=(hf.Value("int64"), [0, 1, 0]), mask=(hf.Image(), [damaged] * 3))
    table.save_to_disk(str(tmp_path / "d"))
    split = datasets.load("hf", None, name=str(tmp_path / "d"))["train"]
    assert split.labels == [0, 1, 0]
    for image, photo in zip(split.images, photos):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.read_bytes()))), photo)


def test_hugging_faces_splits_with_labels_win_and_rows_without_image_are_skipped(tmp_path, photos):
    import datasets as hf

    kind = hf.ClassLabel(names=["a", "b"])
    train = rows_of(hf, photos, label=(kind, [0, 1, 0]))
    holes = hf.Dataset.from_dict(
        {"image": [None, Image.fromarray(photos[0])], "label": [0, 1]},
        features=hf.Features({"image": hf.Image(), "label": kind}),
    )
    hidden = rows_of(hf, photos, label=(kind, [-1, -1]))
    labelled = rows_of(hf, photos, label=(kind, [1, 1]))
    for name, test, wanted in (
        ("hidden", hidden, {"train": [0, 1, 0], "test": [0, 1]}),
        ("labelled", labelled, {"train": [0, 1, 0], "val": [0, 1], "test": [1, 1]}),
    ):
        hf.DatasetDict({"train": train, "validation": holes, "test": test}).save_to_disk(str(tmp_path / name))
        splits = datasets.load("hf", None, name=str(tmp_path / name))
        assert {split: list(content.labels) for split, content in splits.items()} == wanted
    done = script("--ds", "hf", "--name", tmp_path / "hidden", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the validation split is the test split: it has labels, and the test split has none" in done.stdout
    assert "the row has no image" in done.stderr
    assert open_beton(tmp_path / "out" / "hidden_test.beton").label.tolist() == [1]


def test_a_webdatasets_key_ends_at_the_first_dot_and_labels_are_not_optional_by_chance(tmp_path, photos):
    def shard(name, *members):
        with tarfile.open(tmp_path / name, "w") as file:
            for member in members:
                data = member.rpartition(".")[0].encode()[-1:] if member.endswith("cls") else photo_bytes(photos[0])
                info = tarfile.TarInfo(member)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return str(tmp_path / name)

    dotted = shard(
        "dotted.tar", "x.y/a.left.jpg", "x.y/a.right.jfif", "x.y/a.cls", "b.1.jpg", "b.1.cls", "c.jpg", "c.cls"
    )
    split = datasets.load("webdataset", None, shards=dotted)["train"]
    assert [split.classes[label] for label in split.labels] == ["a", "a", "1", "c"]
    bare = shard("bare.tar", "a.jpg", "b.jpg")
    with pytest.raises(DatasetError, match=r"2 of 2 images have no label .*first .*a\.jpg.*--no-labels"):
        datasets.load("webdataset", None, shards=bare)
    assert script("--ds", "webdataset", "--shards", bare, "--out", tmp_path / "out", "--no-labels").returncode == 0
    assert open_beton(tmp_path / "out" / "webdataset_train.beton").classes == ["all"]


# --- split lists


def photo_bytes(pixels, quality=95):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def originals(tmp_path, photos):
    """12 photographs as originals (JPEGs, ORIGINALS/CLASS_N.jpg), and the tree TREE/{train,test}/CLASS/CLASS_N.jpg that
    Pillow made of them, with a shorter side of 64 and quality 88."""
    for k, pixels in enumerate(photos[:12]):
        name = f"{'ab'[k % 2]}_{k:02d}.jpg"
        original = _made(tmp_path / "originals" / name)
        original.write_bytes(photo_bytes(pixels))
        image = Image.open(original)
        ratio = 64 / min(image.size)
        size = tuple(round(side * ratio) for side in image.size)
        small = _made(tmp_path / "tree" / ("train" if k < 8 else "test") / name[0] / name)
        image.resize(size, Image.Resampling.LANCZOS).save(small, "JPEG", quality=88)
    return tmp_path / "originals"


def write_list(path, tree, settings=(), digest=True):
    """The list of a tree, in the order of the rows that `--ds folder` gives it."""
    lines = [f"@{setting}" for setting in settings]
    for split, content in datasets.load("folder", tree).items():
        for i in np.random.default_rng(0).permutation(len(content)):
            image = content.images[i]
            lines.append(
                "\t".join([split, content.classes[content.labels[i]], image.name, luma_digest(image)][: 3 + digest])
            )
    write(path, ["# made by a test", "", *lines])
    return path


def fingerprints(out, name):
    return [open_beton(out / f"{name}_{split}.beton").fingerprint for split in ("train", "test")]


@pytest.mark.parametrize("match", ["file", "luma"])
def test_a_split_list_gives_the_same_betons_from_the_tree_and_from_originals(originals, tmp_path, match):
    """Row by row: the fingerprint depends on pixels, labels and order. By digest, whatever the files are called."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    listing = write_list(tmp_path / "list.txt", tree, (f"match {match}", "shorter_side 64", "quality 88"))
    if match == "luma":
        for k, path in enumerate(sorted(originals.iterdir(), reverse=True)):
            path.rename(originals / f"{k}.jpg")
        (originals / "damaged.jpg").write_bytes(b"not an image")
    options = ("--ds", "folder", "--out", out, "--mode", "raw", "--max-resolution", "60")
    assert script(*options, "--root", tree, "--name", "plain").returncode == 0
    for name, root in (("tree", tree), ("originals", originals)):
        done = script(*options, "--root", root, "--name", name, "--split-list", listing)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        assert fingerprints(out, name) == fingerprints(out, "plain")
        assert all(f"fingerprint {mark}" in done.stdout for mark in fingerprints(out, name))
        assert open_beton(out / f"{name}_test.beton").classes == ["a", "b"]


def test_a_list_without_digests_takes_files_as_they_are(originals, tmp_path):
    write(tmp_path / "list.txt", ["test\tz\ta_02.jpg", "train\tz\tb_01.jpg", "train\tb\toriginals/a_00.jpg"])
    splits = choose_listed(datasets.load("folder", originals), read_split_list(tmp_path / "list.txt"))
    assert splits["train"].images == [originals / "b_01.jpg", originals / "a_00.jpg"]
    assert (splits["train"].labels, splits["train"].classes) == ([1, 0], ["b", "z"])
    assert splits["test"].labels == [1]


def test_a_list_without_digests_prepares_images_as_its_settings_say(originals, tmp_path):
    tree = tmp_path / "tree"
    listing = read_split_list(write_list(tmp_path / "list.txt", tree, ("shorter_side 64", "quality 88"), digest=False))
    splits = choose_listed(datasets.load("folder", originals), listing)
    images = [image for split in splits.values() for image in split.images]
    made = {path.name: path.read_bytes() for path in tree.rglob("*.jpg")}
    assert {Path(str(image)).name: image.read_bytes() for image in images} == made


def test_other_pixels_than_those_of_the_list_are_said(originals, tmp_path, photos, capsys):
    listing = read_split_list(write_list(tmp_path / "list.txt", tmp_path / "tree", ("shorter_side 64", "quality 88")))
    (originals / "b_03.jpg").write_bytes(photo_bytes(photos[20]))
    splits = choose_listed(datasets.load("folder", originals), listing)
    assert [len(splits[s]) for s in ("train", "test")] == [8, 4]
    assert "1 of the 12 images" in (said := capsys.readouterr().err)
    assert "first b_03.jpg" in said
    (originals / "b_03.jpg").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"b_03\.jpg \(line \d+ of .*list\.txt\) can't be read"):
        choose_listed(datasets.load("folder", originals), listing)


@pytest.mark.parametrize("match", ["file", "luma"])
def test_images_that_are_missing_are_counted_and_the_first_is_named(originals, tmp_path, match):
    listing = write_list(tmp_path / "list.txt", tmp_path / "tree", (f"match {match}",))
    gone = [image.file for image in read_split_list(listing).images[3:5]]
    for name in gone:
        next((tmp_path / "tree").rglob(name)).unlink()
    refused = script("--ds", "folder", "--root", tmp_path / "tree", "--out", tmp_path / "out", "--split-list", listing)
    assert refused.returncode == 1
    assert f"2 of the 12 images of {listing} are missing, first {gone[0]} (line 7)" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_name_that_two_files_have_is_refused(originals, tmp_path):
    listing = write_list(tmp_path / "list.txt", tmp_path / "tree")
    shutil.copytree(originals, tmp_path / "tree" / "train" / "a" / "again")
    with pytest.raises(
        DatasetError, match=r"12 images of .* are ambiguous, first [ab]_\d\d\.jpg \(line 3\), which is .*/"
    ):
        choose_listed(datasets.load("folder", tmp_path / "tree"), read_split_list(listing))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train a x.jpg", "is not SPLIT, CLASS, FILE"),
        ("train\ta", "is not SPLIT, CLASS, FILE"),
        ("train\t\tx.jpg", "is not SPLIT, CLASS, FILE"),
        ("valid\ta\tx.jpg", "the split 'valid' is not train or test"),
        ("train\ta\tx.jpg\t123", "the digest '123' is not 16 hex digits"),
        ("@shorter 256", "is not @match"),
        ("@match name", "is not @match"),
        ("@quality 0", "is not @match"),
        ("train\ta\tfirst.jpg", "names the same image as line 2"),
        ("@match luma", "line 2: the digest is missing"),
    ],
)
def test_a_malformed_line_of_a_split_list_is_named(tmp_path, line, said):
    write(tmp_path / "list.txt", ["# a comment", "train\ta\tfirst.jpg", line])
    with pytest.raises(DatasetError, match=r"list\.txt, line [23]") as refused:
        read_split_list(tmp_path / "list.txt")
    assert said in str(refused.value)


def test_a_file_that_two_lines_name_in_two_ways_is_refused(tree, tmp_path):
    """It had gone into both splits."""
    path = next(tree.rglob("*.jpg")).relative_to(tree).as_posix()
    text = f"\ufefftrain\ta\t{path}\ntest\ta\t{path.rpartition('/')[2]}\n"  # with the mark that Windows writes
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"line 2 names the same image as line 1: .*Remove one"):
        choose_listed(datasets.load("folder", tree), read_split_list(tmp_path / "list.txt"))


def test_a_file_that_is_no_split_list_is_refused(tmp_path):
    path = tmp_path / "list.txt"
    for content, said in (
        (b"\xff\xd8\xff\xe0", "not a text file"),
        (b"# nothing\n", "names no image"),
        (b"@shorter_side 64\ntrain\ta\tx.jpg\n", "has @shorter_side and no @quality"),
    ):
        path.write_bytes(content)
        refused = script("--ds", "folder", "--root", tmp_path, "--split-list", path)
        assert refused.returncode == 1
        assert said in refused.stderr


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("flowers90", 2040, 1451, 90), ("dtd10", 800, 400, 10), ("cifar10", 5000, 2000, 10)],
)
def test_the_lists_of_the_main_table_are_complete(name, train, test, classes):
    images = read_split_list(ROOT / "results" / "splits" / f"{name}.txt").images
    assert [sum(image.split == split for image in images) for split in ("train", "test")] == [train, test]
    assert len({image.class_name for image in images}) == classes
    assert len({image.luma for image in images}) == train + test


# --- by the script


def script(*args):
    return run_script("write_datasets.py", *args)


def test_every_name_converts_from_the_command_line(tmp_path, shards, photos):
    """All of them through one process, the script's own main, to real files that open."""
    import datasets as hf

    sys.path.insert(0, str(ROOT))
    import write_datasets

    hf.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in photos[:4]]}, features=hf.Features({"image": hf.Image()})
    ).save_to_disk(str(tmp_path / "mine"))
    out = tmp_path / "out"
    expected = {}
    for name, make in UPSTREAM.items():
        train, test, _ = make(tmp_path / name)
        expected |= {f"{name}_train": train, f"{name}_test": test}
        write_datasets.main(["--ds", name, "--root", str(tmp_path / name), "--out", str(out), "--partial"])
    write_datasets.main(["--ds", "sin10k", "--root", str(tmp_path / "imagenet"), "--out", str(out), "--per-class", "3"])
    write_datasets.main(
        ["--ds", "sin10k-total", "--root", str(tmp_path / "imagenet"), "--out", str(out), "--total", "7"]
    )
    write_datasets.main(
        ["--ds", "folder", "--root", str(tmp_path / "dtd" / "dtd" / "images"), "--out", str(out), "--subset", "5"]
    )
    write_datasets.main(["--ds", "webdataset", "--shards", f"{shards}/*.tar", "--out", str(out)])
    write_datasets.main(["--ds", "hf", "--name", str(tmp_path / "mine"), "--out", str(out)])
    counts = {p.stem: len(open_beton(p)) for p in out.glob("*.beton")}
    assert counts == expected | {
        "sin10k_train": 9,
        "sin10k-total_train": 7,
        "folder_train": 5,
        "webdataset_train": 10,
        "mine_train": 4,
    }
    assert len((out / "sin10k_train.txt").read_text().splitlines()) == 9
    assert all(line.count("/") == 1 for line in (out / "sin10k-total_train.txt").read_text().splitlines())


def test_list_verify_and_show(jpg_beton, tmp_path):
    shown = script("--ds", "list")
    assert shown.returncode == 0
    for name in datasets.names():
        assert name in shown.stdout
    path = tmp_path / "a.beton"
    shutil.copy(jpg_beton, path)
    shutil.copy(jpg_beton.with_suffix(".json"), path.with_suffix(".json"))
    whole = script("--verify", path)
    assert whole.returncode == 0, whole.stderr
    assert "40 images" in whole.stdout
    assert "a 10, b 10, c 10, d 10" in whole.stdout
    assert script("--show", path).stdout.strip() == str(path.with_suffix(".png"))
    assert np.asarray(Image.open(path.with_suffix(".png"))).std() > 20
    data = bytearray(path.read_bytes())
    beton = open_beton(path)
    data[int(beton.ptr[7]) + 100] ^= 1
    path.write_bytes(data)
    damaged = script("--verify", path)
    assert damaged.returncode == 1
    assert "row 7: its bytes are not those that were written" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_help_lists_every_dataset():
    shown = script("--help").stdout
    for name in datasets.names():
        assert name in shown
    nobody = script("--ds", "nobody")
    assert nobody.returncode == 1
    assert "The names are" in nobody.stderr


def test_typing_errors_and_help_need_no_torch_numba_or_ffcv():
    """They answer at once: what takes seconds to import is not imported."""
    code = """
import sys, write_datasets
for args in (["--help"], ["--ds", "nobody"], ["--ds", "pets", "--quality", "101"], ["--split-list", "x"]):
    try:
        write_datasets.main(args)
    except SystemExit:
        pass
print(sorted({"torch", "numba", "ffcv", "scipy", "cv2"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert "There is no dataset" not in done.stdout
    refused = script("--ds", "folder", "--split-list", "x", "--subset", "3")
    assert refused.returncode == 2
    assert "leave out --subset" in refused.stderr
