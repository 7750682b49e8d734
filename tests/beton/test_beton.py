"""Writing and opening betons: what stock FFCV reads, what is skipped, and that nothing half-written is left."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, ForkedScript, run_forked, run_script
from PIL import Image
from sklearn.datasets import load_sample_images

from idmm_fast import __version__
from idmm_fast.beton import BetonError, WriteError, open_beton, write_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.beton.encode import encode, plain_jpeg, stored_size, to_rgb
from idmm_fast.beton.format import HEADER, MIN_PAGE, SUMS_MARK
from idmm_fast.beton.jpeg import OK, Decoder, decode_jpeg
from idmm_fast.beton.jpeg_check import is_intact
from idmm_fast.beton.verify import verify
from idmm_fast.beton.write import WriteOptions, _encoded
from idmm_fast.commands.convert import write_datasets
from idmm_fast.datasets import Split, load
from idmm_fast.kernels.resize import crop_resize_rounded, resized, scratch_size, taps, weights

SCRIPT = ROOT / "write_datasets.py"


def convert(*args):
    return run_script("write_datasets.py", *args)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, photos):
    """JPEGs and PNGs of many kinds, and two files that no decoder reads.

    JPEG: baseline, progressive, gray, CMYK, rotated by EXIF, with a warning. PNG: RGB, RGBA, 16-bit, palette.
    """
    root = tmp_path_factory.mktemp("mixed")
    (root / "a").mkdir()
    (root / "b").mkdir()
    image = Image.fromarray(photos[0])
    image.save(root / "a" / "baseline.jpg", quality=90)
    image.save(root / "a" / "progressive.jpg", quality=95, progressive=True)
    image.convert("L").save(root / "a" / "gray.jpg", quality=95)
    image.convert("CMYK").save(root / "a" / "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "a" / "rotated.jpg", quality=95, exif=exif)
    image.save(root / "b" / "rgb.png")
    rgba = image.convert("RGBA")
    rgba.putalpha(128)
    rgba.save(root / "b" / "rgba.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(root / "b" / "deep.png")
    image.quantize(64).save(root / "b" / "palette.png")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    (root / "b" / "corrupt.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (root / "b" / "empty.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def mixed_betons(mixed, photos, tmp_path_factory):
    """What converting said, the file, and the images and labels that stock FFCV reads from it.

    Of `mixed` in each mode, and of eight small images, "tiny": all are read in one process.
    """
    folder, found = tmp_path_factory.mktemp("mixed_betons"), {}
    for mode in ("jpg", "raw"):
        found[mode] = convert("--ds", "folder", "--root", mixed, "--out", folder, "--name", mode, "--mode", mode)
    paths = {mode: folder / f"{mode}_train.beton" for mode in found}
    split = Split(small_images(photos), [k % 2 for k in range(8)], ["a", "b"])
    tiny = write_beton(folder / "tiny.beton", split, dataset="t", name="train", mode="raw", seed=None, quiet=True)
    found["tiny"], paths["tiny"] = tiny, tiny.path
    return {m: (found[m], paths[m], *read) for m, read in zip(found, read_with_ffcv(folder, *paths.values()))}


def small_images(photos):
    return [np.ascontiguousarray(photo[:64, :64]) for photo in photos[:8]]


READ_WITH_FFCV = """
import sys
import numpy as np
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
from ffcv.loader import Loader, OrderOption

for path in sys.argv[1:]:
    pipelines = {"image": [CenterCropRGBImageDecoder((64, 64), ratio=1)], "label": [IntDecoder()]}
    options = {"order": OrderOption.SEQUENTIAL, "drop_last": False, "os_cache": not path.endswith("tiny.beton")}
    loader = Loader(path, batch_size=1, num_workers=1, pipelines=pipelines, **options)
    images, labels = zip(*((np.array(image), np.array(label)) for image, label in loader))
    np.savez(f"{path}.npz", images=np.concatenate(images), labels=np.concatenate(labels))
"""


def read_with_ffcv(folder, *paths):
    """The images and labels that the unmodified ffcv.loader.Loader reads from each file, in a process of its own.

    It reads a file called tiny.beton by its own cache of pages, others through a memory map.
    """
    run_forked(folder, READ_WITH_FFCV, *paths)
    for path in paths:
        with np.load(f"{path}.npz") as result:
            yield result["images"], result["labels"]


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_mixed_tree_converts_names_the_corrupt_files_and_opens_in_stock_ffcv(mixed_betons, mode):
    result, path, images, labels = mixed_betons[mode]
    assert result.returncode == 0, result.stderr
    assert "corrupt.jpg" in result.stderr
    assert "empty.png" in result.stderr
    beton = open_beton(path)
    assert len(beton) == 9
    assert beton.sidecar["count"] == 9
    assert {Path(s["file"]).name for s in beton.sidecar["skipped"]} == {"corrupt.jpg", "empty.png"}
    assert beton.sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert beton.classes == ["a", "b"]
    assert sorted(labels.ravel().tolist()) == [0] * 5 + [1] * 4
    assert (labels.ravel() == beton.label).all()
    # Stock FFCV's pixels are those of our decoder: same decode, its own INTER_AREA resize, so close and not equal.
    import cv2

    for image, ours in zip(images, decode_rows(beton, range(9))):
        side = min(ours.shape[:2])
        top, left = (ours.shape[0] - side) // 2, (ours.shape[1] - side) // 2
        wanted = cv2.resize(ours[top : top + side, left : left + side], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - wanted).mean() < 1.5


def test_every_kind_of_image_keeps_its_pixels(mixed, photos):
    """Against the photograph itself: exact where the source is lossless, within JPEG's loss where it is not."""
    original = photos[0].astype(int)

    def pixels(name):
        stored = encode(mixed / name, "raw")
        return np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3).astype(int)

    assert np.array_equal(pixels("b/rgb.png"), original)
    assert np.abs(pixels("b/rgba.png") - (original + 255) / 2).max() <= 1.5  # half transparent, laid on white
    gray = np.asarray(Image.fromarray(photos[0]).convert("L")).astype(int)
    assert np.array_equal(pixels("b/deep.png"), np.repeat(gray[:, :, None], 3, 2))
    for name in ("a/progressive.jpg", "a/cmyk.jpg"):
        assert np.abs(pixels(name) - original).mean() < 6, name
    assert np.abs(pixels("a/rotated.jpg") - np.rot90(original, -1)).mean() < 6
    assert stored_size(mixed / "a/rotated.jpg") == (original.shape[1], original.shape[0])


def test_good_jpegs_are_stored_byte_for_byte_and_others_converted(mixed):
    for name in ("baseline.jpg", "gray.jpg"):
        assert encode(mixed / "a" / name, "jpg").data == (mixed / "a" / name).read_bytes()
    for name in ("a/progressive.jpg", "a/cmyk.jpg", "a/rotated.jpg", "b/rgb.png"):
        stored = encode(mixed / name, "jpg")
        image = Image.open(io.BytesIO(stored.data))
        assert image.format == "JPEG"
        assert image.mode == "RGB"
        assert not image.info.get("progressive")
        assert image.size == (stored.width, stored.height)


def jpegs(photo):
    """A photograph as every kind of JPEG that is stored as it is."""
    options = [{"quality": q, "subsampling": s} for q in (30, 90, 100) for s in ("4:4:4", "4:2:2", "4:2:0")]
    options += [
        {"optimize": True},
        {"restart_marker_blocks": 5},
        {"restart_marker_rows": 1, "subsampling": "4:2:0"},
        {"qtables": "web_low"},
    ]
    for image in (Image.fromarray(photo), Image.fromarray(photo).convert("L")):
        for option in options:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", **option)
            yield np.frombuffer(buffer.getvalue(), np.uint8), image.size


@pytest.mark.integration
def test_whole_jpegs_are_found_to_be_whole_without_decoding(photos):
    for photo in photos[:4]:
        for data, _ in jpegs(photo):
            assert is_intact(data)
            assert is_intact(np.append(data, np.uint8([0, 1, 2])))  # what comes after the end is nobody's
            assert not is_intact(data[: data.size - 2])
            assert not is_intact(data[: data.size // 2])


def test_a_jpeg_that_seems_intact_is_one_that_libjpeg_turbo_reads_without_a_warning(photos):
    """6,000 mutations; where `is_intact` says yes, the decoder must agree.

    (Where it says no, the decoder is asked anyway.)
    """
    rng, decoder = np.random.default_rng(0), Decoder()
    kinds = [k for photo in photos[:3] for k in jpegs(photo[:64, :72])]
    agreed = 0
    for k in range(6000):
        data, (width, height) = kinds[k % len(kinds)]
        data = data.copy()
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(0, data.size)
            change = rng.integers(4)
            if change == 0:
                data[at] = rng.integers(256)
            elif change == 1:
                data[at] ^= 1 << rng.integers(8)
            elif change == 2:
                data = np.delete(data, at)
            else:
                data = np.insert(data, at, rng.choice([0, 255, 0xD0, 0xD9]))
        if is_intact(data):
            size = plain_jpeg(data.tobytes()) or (height, width)
            assert decode_jpeg(decoder.handle, data, *size, np.empty(3 * size[0] * size[1], np.uint8)) == OK, k
            agreed += 1
    assert agreed > 300  # mutations that make other pixels, not damage


def test_max_resolution_shrinks_the_longer_side(photos):
    stored = encode(photos[0], "raw", max_resolution=50)
    assert max(stored.height, stored.width) == 50
    wanted = Image.fromarray(photos[0]).resize((stored.width, stored.height), Image.BILINEAR)  # antialiased, in PIL
    assert (
        np.abs(np.frombuffer(stored.data, np.uint8).reshape(*wanted.size[::-1], 3) - np.asarray(wanted, int)).max() <= 1
    )


@pytest.mark.parametrize("size", [(8, 8), (9, 101), (64, 8), (127, 130)])
def test_any_size_is_shrunk_as_by_pil(photos, size):
    for photo in photos[:6]:
        height, width = min(size[0], photo.shape[0]), min(size[1], photo.shape[1])
        wanted = np.asarray(Image.fromarray(photo).resize((width, height), Image.BILINEAR), int)
        assert np.abs(resized(photo, height, width) - wanted).max() <= 1


def wide_photo(width):
    """A photograph drawn out to 9 x `width`, black at its left end and white at its right."""
    source = load_sample_images().images[0][100:109]
    image = np.array(Image.fromarray(source).resize((width, 9), Image.NEAREST))
    image[:, : width // 4], image[:, -width // 4 :] = 0, 255
    return image


def closed_form(image, height, width):
    """Bilinear with antialiasing in float64: triangles as wide as the reduction, cut off at the edges."""

    def matrix(length, size):
        stretch = max(1.0, length / size)
        distance = np.arange(length)[None] + 0.5 - (np.arange(size)[:, None] + 0.5) * length / size
        weights = np.maximum(1 - np.abs(distance) / stretch, 0)
        return weights / weights.sum(1, keepdims=True)

    return np.einsum(
        "yh,hwc,xw->yxc", matrix(image.shape[0], height), image, matrix(image.shape[1], width), optimize=True
    )


@pytest.mark.parametrize("reduction", [10, 100, 128, 150, 1000, 8000])
def test_large_reductions_are_those_of_pil_and_of_the_closed_form(reduction):
    image = wide_photo(8 * reduction)
    for source, size in ((image, (8, 8)), (np.ascontiguousarray(image.swapaxes(0, 1)), (8, 8))):
        ours = resized(source, *size).astype(int)
        assert np.abs(ours - closed_form(source, *size)).max() < (1.1 if reduction <= 128 else 0.7)
        assert np.abs(ours - np.asarray(Image.fromarray(source).resize(size[::-1], Image.BILINEAR), int)).max() <= 1


@pytest.mark.parametrize(("side", "size"), [(1655, 16), (3310, 32), (880, 8)])
def test_white_stays_white(side, size):
    """Of a reduction of 103 both ways too, whose rounded weights add up to more than 1."""
    assert (resized(np.full((side, side, 3), 255, np.uint8), size, size) == 255).all()


@pytest.mark.parametrize("reduction", [10, 100, 1000, 8000])
def test_large_bicubic_reductions_are_those_of_pil(reduction):
    image = wide_photo(8 * reduction)
    height, width = image.shape[:2]
    starts, tables, taken = [], [], []
    for length in (height, width):
        starts.append(np.empty(8, np.int64))
        tables.append(np.empty((8, taps(True, length, 8)), np.float32))
        taken.append(weights(True, length, 8, 0, 8, False, starts[-1], tables[-1]))
    planes, scratch = np.empty((3, 8, 8), np.float32), np.empty(scratch_size(8, width, height), np.float32)
    crop_resize_rounded(
        image, 0, 0, starts[0], taken[0], tables[0], starts[1], taken[1], tables[1], width, scratch, planes
    )
    wanted = np.asarray(Image.fromarray(image).resize((8, 8), Image.BICUBIC), int)
    assert np.abs(np.rint(planes.transpose(1, 2, 0)) - wanted).max() <= 1


def test_a_file_that_is_no_sidecar_is_not_written_over(tree, tmp_path):
    split, beton = load("folder", tree)["train"], tmp_path / "mine_train.beton"
    beton.with_suffix(".json").write_text('{"annotations": [1, 2, 3]}')
    with pytest.raises(WriteError, match=r"mine_train\.json is not of a conversion"):
        write_beton(beton, split, dataset="x", name="train", quiet=True)
    assert beton.with_suffix(".json").read_text() == '{"annotations": [1, 2, 3]}'
    assert not list(tmp_path.glob("*.lock"))
    beton.with_suffix(".json").unlink()
    write_beton(beton, split, dataset="x", name="train", quiet=True)
    beton.unlink()  # its sidecar may be written over
    write_beton(beton, split, dataset="x", name="train", quiet=True)


def test_transparency_is_laid_on_white():
    image = Image.new("LA", (4, 4), (10, 0))
    assert (np.asarray(to_rgb(image)) == 255).all()


def test_same_bytes_for_any_number_of_workers(tree, tmp_path):
    split = load("folder", tree)["train"]
    files = [
        write_beton(
            tmp_path / f"{w}.beton", split, dataset="t", name="train", workers=w, mode="jpg", seed=3, quiet=True
        )
        for w in (1, 4)
    ]
    assert files[0].path.read_bytes() == files[1].path.read_bytes()
    other = write_beton(tmp_path / "s.beton", split, dataset="t", name="train", mode="jpg", seed=4, quiet=True)
    assert not np.array_equal(open_beton(other.path).label, open_beton(files[0].path).label)


@pytest.mark.integration
def test_few_images_make_a_small_file_that_stock_ffcv_reads(mixed_betons, tmp_path, photos):
    small = small_images(photos)
    split = Split([*small[:3]], [0, 1, 0], ["a", "b"])
    tiny = write_beton(tmp_path / "tiny.beton", split, dataset="t", name="train", mode="raw", seed=None, quiet=True)
    assert tiny.path.stat().st_size < 3 * 64 * 64 * 3 * 4  # was 17 MB
    _, path, images, labels = mixed_betons["tiny"]
    assert path.stat().st_size < 400_000
    beton = open_beton(path)
    for image, wanted in zip(decode_rows(beton, range(8)), small):
        assert np.array_equal(image, wanted)
    assert beton.page_size == 1 << 17
    assert "8 images" in run_script("write_datasets.py", "--verify", path).stdout
    assert np.array_equal(images, small)
    assert labels.ravel().tolist() == [0, 1] * 4


def test_verify_counts_images_without_a_label_apart(tmp_path, photos):
    """And prints classes whose names are not UTF-8, and says so where there is no class at all."""
    images = small_images(photos)[:4]
    for labels, classes, wanted in (
        ([0, -1, 1, -1], [os.fsdecode(b"caf\xe9"), "b"], "2 classes of 1 to 1 images, 2 images without a label: "),
        ([-1] * 4, [], "no classes, 4 images without a label"),
    ):
        split = Split(images, labels, classes)
        path = write_beton(tmp_path / "v.beton", split, dataset="t", name="train", mode="raw", quiet=True).path
        names = "caf\\xe9 1, b 1" if classes else ""
        assert convert("--verify", path).stdout.splitlines()[-1] == wanted + names


def test_images_larger_than_a_page(tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (1800, 1700, 3), dtype=np.uint8)  # 9.2 MB, a page holds 8.4
    split = Split([big[:10, :10], big, big[:20, :20]], [0, 1, 2], ["a", "b", "c"])
    beton = open_beton(
        write_beton(tmp_path / "big.beton", split, dataset="t", name="train", mode="raw", quiet=True).path
    )
    for image, label in zip(decode_rows(beton, range(3)), beton.label):
        assert np.array_equal(image, split.images[label])


def test_on_error_fail_stops_and_leaves_nothing(mixed, tmp_path):
    result = convert("--ds", "folder", "--root", mixed, "--out", tmp_path, "--on-error", "fail")
    assert result.returncode != 0
    assert "can't be converted" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_convert_is_an_error(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(WriteError, match=r"none of the images.*x\.jpg"):
        write_beton(
            tmp_path / "o.beton", Split([tmp_path / "x.jpg"], [0], ["a"]), dataset="t", name="train", quiet=True
        )
    assert not (tmp_path / "o.beton").exists()
    assert not (tmp_path / "o.beton.tmp").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small file system")
def test_full_disk_is_an_error_that_leaves_the_old_file(tmp_path, photos):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (folder / "a.beton").write_bytes(b"old")
        split = Split(photos * 20, [0] * len(photos) * 20, ["a"])
        with pytest.raises(WriteError, match="No space left"):
            write_beton(folder / "a.beton", split, dataset="t", name="train", mode="raw", quiet=True)
        assert (folder / "a.beton").read_bytes() == b"old"
        assert [p.name for p in folder.iterdir()] == ["a.beton"]
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """300 large PNGs, which take a while to convert."""
    root = tmp_path_factory.mktemp("many")
    (root / "a").mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    noise.save(root / "a" / "0.png")
    for k in range(1, 300):
        os.link(root / "a" / "0.png", root / "a" / f"{k}.png")
    return root


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_killed_conversion_leaves_no_file_under_the_final_name(many, tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--ds", "folder", "--root", many, "--out", tmp_path / "out", "--mode", "jpg"],
        stderr=subprocess.PIPE,
        text=True,
    )
    temporary = tmp_path / "out" / "folder_train.beton.tmp"
    while not temporary.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    _, message = process.communicate(timeout=10)
    assert process.returncode != 0
    left = {p.name for p in (tmp_path / "out").iterdir()}
    if number == signal.SIGKILL:
        assert left <= {"folder_train.beton.tmp", "folder_train.beton.lock"}
    else:
        assert left == set()
        assert "nothing was left" in message


def test_a_stop_between_splits_names_those_that_are_new(tree, tmp_path, monkeypatch, capsys):
    """A test split of an earlier conversion beside them may hold their images."""

    def write_first(path, *args, name, **options):
        if name == "test":
            raise KeyboardInterrupt
        return write_beton(path, *args, name=name, **options)

    monkeypatch.setattr("idmm_fast.beton.write_beton", write_first)
    options = ["--test-share", "0.2", "--name", "tree", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="130"):
        write_datasets(["--ds", "folder", "--root", str(tree), *options])
    assert "stopped after train: convert again, so that all splits fit together" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.beton")} == {"tree_train.beton"}


def test_a_failure_between_splits_names_those_that_are_new(tree, tmp_path, monkeypatch, capsys):
    def write_first(path, *args, name, **options):
        if name == "test":
            raise WriteError("the disk is full")
        return write_beton(path, *args, name=name, **options)

    monkeypatch.setattr("idmm_fast.beton.write_beton", write_first)
    with pytest.raises(WriteError):
        write_datasets(["--ds", "folder", "--root", str(tree), "--test-share", "0.2", "--out", str(tmp_path)])
    assert "folder_train.beton is of this conversion: convert again, so that all splits" in capsys.readouterr().err


CONVERT = """
import os, sys
from pathlib import Path
from idmm_fast.beton import write_beton
from idmm_fast.datasets import folder
os.fsync = lambda descriptor: None  # for a loss of power, not for a kill; a busy disk takes seconds for it
split = folder.load(Path(sys.argv[1]))["train"]
write_beton(Path(sys.argv[1]).with_name("warm.beton"), split, dataset="t", name="train", mode="jpg", quiet=True)
print("ready", flush=True)
for _ in sys.stdin:  # a process for each line, which is killed
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
    else:
        for quality in range(50, 100):
            write_beton(Path(sys.argv[2]), split, dataset="t", name="train", mode="jpg", quality=quality, quiet=True)
        os._exit(0)
"""


@pytest.mark.integration
def test_kill_at_twenty_random_moments_leaves_the_old_file_or_the_new_one(tmp_path, photos):
    """A process writes the same file over and over, at another quality each time, and is killed.

    What is there is always whole.
    """
    root, path = tmp_path / "tree", tmp_path / "out" / "a.beton"
    (root / "a").mkdir(parents=True)
    for k, photo in enumerate(photos[:20]):
        Image.fromarray(photo).save(root / "a" / f"{k}.png")
    rng = np.random.default_rng(0)
    seen = set()
    parent = subprocess.Popen(
        [sys.executable, "-c", CONVERT, root, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert parent.stdout.readline() == "ready\n"
    for k in range(100):  # twenty, or more until some were killed late enough to have replaced the file
        if k >= 20 and len(seen) > 1:
            break
        parent.stdin.write("next\n")
        child = int(parent.stdout.readline())
        time.sleep(rng.uniform(0, 0.5) * (1 + k // 20))  # longer, where the machine is slow
        os.kill(child, signal.SIGKILL)
        assert parent.stdout.readline() == "gone\n"
        if path.parent.exists():
            assert {p.name for p in path.parent.iterdir()} <= {
                "a.beton",
                "a.json",
                "a.beton.tmp",
                "a.json.tmp",
                "a.beton.lock",
            }
        if path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                beton = open_beton(path)
                assert len(decode_rows(beton, range(20))) == 20
                seen.add(beton.sidecar.get("quality"))
    parent.stdin.close()
    assert parent.wait(10) == 0
    assert len(seen) > 1
    write_beton(path, load("folder", root)["train"], dataset="t", name="train", quiet=True)
    assert {p.name for p in path.parent.iterdir()} == {"a.beton", "a.json"}


def test_an_error_that_passes_is_no_damaged_image(tree, tmp_path, monkeypatch):
    """A disk that failed once had left an image out for good, where the conversion is kept."""

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("idmm_fast.beton.write.encode", fail)
    with pytest.raises(WriteError, match=r"\.jpg could not be read this time: .*Input/output error. Run it again"):
        write_beton(tmp_path / "x.beton", load("folder", tree)["train"], dataset="x", name="x", mode="raw", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*mark.json is not of this")
def test_a_flipped_bit_in_the_number_of_rows_or_in_the_mark_of_the_sums_is_noticed(raw_beton, tmp_path):
    """By opening, and by --verify, which knows that the sidecar was of another file."""
    whole = raw_beton.read_bytes()
    for name in ("rows", "mark"):
        path, data = tmp_path / f"{name}.beton", bytearray(whole)
        at = 8 if name == "rows" else whole.index(np.array([SUMS_MARK]).tobytes())
        data[at] ^= 8
        path.write_bytes(data)
        shutil.copy(raw_beton.with_suffix(".json"), path.with_suffix(".json"))
    with pytest.raises(BetonError, match=r"says it has \d+ rows, and holds 40 images|damaged"):
        open_beton(tmp_path / "rows.beton")
    with pytest.raises(BetonError, match=r"mark\.json is damaged, or not of this mark\.beton"):
        verify(tmp_path / "mark.beton")
    cut = tmp_path / "cut.beton"
    shutil.copy(raw_beton, cut)
    text = raw_beton.with_suffix(".json").read_text()
    cut.with_suffix(".json").write_text(text[: len(text) // 2])
    with pytest.warns(UserWarning, match=r"cut\.json is not of this cut\.beton"):
        assert open_beton(cut).classes[0] == "class_0"


def test_a_sidecar_of_another_file_is_not_believed(jpg_beton, raw_beton, tmp_path):
    shutil.copy(jpg_beton, tmp_path / "a.beton")
    shutil.copy(raw_beton.with_suffix(".json"), tmp_path / "a.json")
    with pytest.warns(UserWarning, match=r"a\.json is not of this"):
        assert open_beton(tmp_path / "a.beton").classes == ["class_0", "class_1", "class_2", "class_3"]


FUZZ = """
import random, sys, warnings
import numpy as np
from pathlib import Path
from idmm_fast.beton import BetonError, open_beton
from idmm_fast.beton.jpeg import OK, Decoder
from idmm_fast.beton.decode import decode_row

warnings.simplefilter("ignore")
original, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
count, sums = int(sys.argv[3]), sys.argv[4] == "sums"
target.write_bytes(original)
whole = open_beton(target)
decoder = Decoder()
images = [decode_row(whole, row, decoder)[0] for row in range(len(whole))]
first, table = int(whole.ptr.min()), int.from_bytes(original[16:24], "little")
regions = {
    "header": (0, 32),
    "fields": (32, 2120),
    "rows": (2120, 2120 + 24 * len(whole)),
    "all before the pages": (0, 2120 + 40 * len(whole)),
    "pages": (first, int((whole.ptr + whole.length).max())),
    "allocations": (table, len(original)),
    "anywhere": (0, len(original)),
}
rng = random.Random(1)
outcomes = {"refused": 0, "error": 0, "correct": 0, "other pixels": 0}
for trial in range(count):
    data = bytearray(original)
    low, high = regions[rng.choice(list(regions))]
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(low, high)
        data[at] = rng.choice((rng.randrange(256), data[at] ^ (1 << rng.randrange(8)), 0, 255))
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)):]
    target.write_bytes(data)
    try:
        beton = open_beton(target)
    except BetonError:
        outcomes["refused"] += 1
        continue
    wrong = False
    for row in range(len(beton)):
        image, code = decode_row(beton, row, decoder)
        if code != OK:
            wrong = True
        elif len(beton) != len(images) or image.shape != images[row].shape or not np.array_equal(image, images[row]):
            outcomes["other pixels"] += 1
            assert not sums, (trial, row)
    outcomes["error" if wrong else "correct"] += 1
print(outcomes)
"""


@pytest.mark.integration
@pytest.mark.parametrize("sums", ["sums", "none"])
@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_fuzzed_files_end_in_an_error_or_in_correct_pixels(tmp_path, photos, mode, sums, monkeypatch):
    """1,000 mutations each of header, tables and pages.

    Without checksums (as in a file by FFCV's own writer) other pixels can't be told, but nothing may crash: hence the
    process of its own.
    """
    monkeypatch.setattr("idmm_fast.beton.write.DEFAULT_PAGE", MIN_PAGE)
    split = Split([p[:40, :56] for p in photos[:6]], [0] * 6, ["a"])
    path = write_beton(tmp_path / "small.beton", split, dataset="t", name="train", mode=mode, quiet=True).path
    if sums == "none":
        data = bytearray(path.read_bytes())
        at = data.index(b"IDMMSUMS")
        data[at : at + 8] = bytes(8)
        path.write_bytes(data)
    (tmp_path / "fuzz.py").write_text(FUZZ)
    process = ForkedScript(tmp_path / "fuzz.py", path, tmp_path / "bad.beton", 1000, sums)
    said = process.communicate(timeout=280)
    assert process.returncode == 0, said[-2000:]
    outcomes = eval(said.splitlines()[-1])
    assert outcomes["refused"] > 200
    if mode == "jpg" or sums == "sums":
        assert outcomes["error"] > 50
    assert outcomes["correct"] > 0
    if sums == "sums":
        assert outcomes["other pixels"] == 0


@pytest.mark.integration
def test_memory_stays_flat_as_the_dataset_grows(tmp_path, photos):
    """Ten times the images at the same peak, within 10 %."""
    code = """
import sys
from pathlib import Path
from idmm_fast.beton import write_beton
from idmm_fast.datasets import Split
for count in map(int, sys.argv[3:]):  # the peak of a process only rises
    split = Split([Path(sys.argv[1])] * count, [0] * count, ["a"])
    write_beton(Path(sys.argv[2]), split, dataset="t", name="train", mode="jpg", workers=2, quiet=True)
    print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""
    Image.fromarray(np.tile(photos[0], (3, 3, 1))).save(tmp_path / "a.jpg", quality=95)
    command = [sys.executable, "-c", code, tmp_path / "a.jpg", tmp_path / "o.beton", "200", "2000"]
    peaks = [int(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
    assert peaks[1] < 1.1 * peaks[0], peaks


def damage(path, target, change):
    data = bytearray(Path(path).read_bytes())
    data = change(data) or data
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[:10], "not a beton"),
        (lambda d: d[:-100], "cut short"),
        (lambda d: d[: len(d) // 2], "cut short"),
        (lambda d: d.__setitem__(slice(16, 24), bytes(8)), "never finished"),
        (lambda d: d.__setitem__(slice(0, 2), b"\x09\x00"), "version"),
        (lambda d: d.__setitem__(slice(8, 16), b"\xff" * 8), "cut short"),
        (lambda d: b"PK\x03\x04" + bytes(4000), "not a beton"),
    ],
)
def test_damaged_files_are_a_sentence(jpg_beton, tmp_path, change, says):
    with pytest.raises(BetonError, match=says):
        open_beton(damage(jpg_beton, tmp_path / "bad.beton", change))


def test_an_error_of_the_disk_is_told_whenever_it_comes(tmp_path, monkeypatch):
    """The system tells of a failed write once, perhaps in a page before the last."""
    calls = []

    def fdatasync(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    split = Split([np.zeros((512, 512, 3), np.uint8)] * 40, [0] * 40, ["a"])  # four pages
    with pytest.raises((OSError, WriteError), match="Input/output error"):
        write_beton(tmp_path / "x.beton", split, dataset="t", name="train", mode="raw", quiet=True)
    assert not (tmp_path / "x.beton").exists()


def test_no_more_than_a_few_images_wait_to_be_written():
    """Of the pixels of photographs eight a thread, and those of a task more."""
    taken = []

    class Images(list):
        def __getitem__(self, place):
            taken.append(place)
            return super().__getitem__(place)

    images = Images([np.zeros((8, 8, 3), np.uint8)] * 400)
    with contextlib.closing(_encoded(images, np.arange(400), 2, "raw", WriteOptions())) as encoded:
        next(encoded)
        time.sleep(0.2)
        assert len(taken) <= 3 * 8


def test_rows_that_point_outside_are_refused(jpg_beton, tmp_path):
    from idmm_fast.beton.format import FIELD, SAMPLE

    at = HEADER.itemsize + 2 * FIELD.itemsize + 3 * SAMPLE.itemsize + 5  # the pointer of row 3
    with pytest.raises(BetonError, match="damaged"):
        open_beton(
            damage(
                jpg_beton,
                tmp_path / "bad.beton",
                lambda d: d.__setitem__(slice(at, at + 8), (1 << 40).to_bytes(8, "little")),
            )
        )


def test_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="idmm-fast convert"):
        open_beton(tmp_path / "none.beton")


@pytest.mark.integration
def test_stock_ffcvs_own_files_open(ffcv_betons, photos, tmp_path):
    """With a field before the image, which ours do not have, and another whole number before the label."""
    beton = open_beton(ffcv_betons / "six.beton")
    assert beton.label.tolist() == list(range(6))
    for image, wanted in zip(decode_rows(beton, range(6)), photos):
        assert np.array_equal(image, wanted)
    assert beton.classes == [f"class_{c}" for c in range(6)]
    unnamed = tmp_path / "unnamed.beton"
    damage(ffcv_betons / "six.beton", unnamed, lambda data: data.replace(b"label\0", b"class\0"))
    with pytest.raises(BetonError, match="2 fields of whole numbers, and none of them is called label"):
        open_beton(unnamed)


def test_sidecar_says_what_the_file_is(jpg_beton):
    content = json.loads(jpg_beton.with_suffix(".json").read_text())
    wanted = {
        "dataset",
        "split",
        "count",
        "classes",
        "mode",
        "max_resolution",
        "quality",
        "order_seed",
        "versions",
        "sha256",
        "skipped",
    }
    assert wanted <= set(content)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--ds", "nope"], "no dataset 'nope'"),
        (["--ds", "folder", "--root", "/nowhere"], "not a folder"),
        (["--ds", "demo", "--quality", "0"], "--quality"),
    ],
)
def test_bad_arguments_are_a_sentence(args, says, tmp_path):
    result = convert(*args, "--out", tmp_path)
    assert result.returncode != 0
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plain_checkout_writes_its_version(tmp_path, photos, monkeypatch):
    """Without the package installed, on PYTHONPATH alone, there is no version of it among the installed ones."""
    installed = {"ffcv": "1.0.2", "pillow": "1", "numpy": "2"}
    monkeypatch.setattr("idmm_fast.beton.write.version", lambda package: installed[package])
    split = Split(photos[:2], [0, 1], ["a", "b"])
    made = write_beton(tmp_path / "a.beton", split, dataset="test", name="train", mode="raw", quiet=True)
    assert json.loads(made.sidecar.read_text())["versions"] == {"idmm-fast": __version__} | installed
