"""Betons that are damaged or made to harm: an error or the right pixels, never a crash, a hang or a full memory."""

import os
import random
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, photographs, run_forked

from idmm_fast.beton import BetonError, open_beton, write_beton
from idmm_fast.beton.checksum import checksum, table_checksum
from idmm_fast.beton.decode import decode_row, decode_rows
from idmm_fast.beton.format import ALLOCATION, FIELD, HEADER, MIN_PAGE, SAMPLE, SUMS_MARK, sums_start
from idmm_fast.beton.jpeg import OK, Decoder
from idmm_fast.beton.verify import verify
from idmm_fast.datasets import Split
from idmm_fast.loader import LoaderError, MultiCropLoader, Views

FIRST = HEADER.itemsize + 2 * FIELD.itemsize  # where the table of the samples is


class Parts:
    """The tables of one of our betons, to be changed.

    `written` puts them back, with the checksums that such tables should have.
    """

    def __init__(self, data):
        self.header = np.frombuffer(data, HEADER, 1).copy()
        count = int(self.header["num_samples"][0])
        self.samples = np.frombuffer(data, SAMPLE, count, FIRST).copy()
        self.allocations = np.frombuffer(data, ALLOCATION, offset=int(self.header["alloc_table_ptr"][0])).copy()

    def written(self, data, sums=True):
        """`data` (bytes) with these tables, all checksums right, or the mark of them gone."""
        data = bytearray(data)
        table = int(self.header["alloc_table_ptr"][0])
        tables = data[: sums_start(FIRST + self.samples.nbytes)]
        tables[: HEADER.itemsize] = self.header.tobytes()
        tables[FIRST : FIRST + self.samples.nbytes] = self.samples.tobytes()
        if table + self.allocations.nbytes <= len(data):
            data[table : table + self.allocations.nbytes] = self.allocations.tobytes()
        lengths = dict(zip(self.allocations["ptr"].tolist(), self.allocations["size"].tolist()))
        pointers = self.samples["f0"]["data_ptr"].tolist()
        content = np.frombuffer(bytes(data), np.uint8)
        row_sums = np.array(
            [checksum(content[p : min(p + lengths.get(p, 0), len(data))]) if p < len(data) else 0 for p in pointers],
            np.uint64,
        )
        over_all = table_checksum(bytes(tables), row_sums, self.allocations)
        marked = np.array([SUMS_MARK if sums else 0, over_all], np.uint64).tobytes() + row_sums.tobytes()
        data[: len(tables) + len(marked)] = tables + marked
        return bytes(data)


def small_beton(path, mode, count=6):
    """A beton of photographs, of a few sizes."""
    photos = photographs(count, seed=3)
    images = [p[: 33 + 5 * k, : 57 - 6 * k] for k, p in enumerate(photos)]
    split = Split(images, [k % 2 for k in range(count)], ["a", "b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("idmm_fast.beton.write.DEFAULT_PAGE", MIN_PAGE)
        path = write_beton(path, split, dataset="t", name="train", mode=mode, quiet=True).path
    path.with_suffix(".json").unlink()
    return path


@pytest.mark.parametrize("label", [2**31, 2**16, -2, -(2**62), 2**63 - 1])
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
    """What counts classes would make an array as long as the largest label."""
    path = small_beton(tmp_path / "a.beton", "raw")
    data = path.read_bytes()
    parts = Parts(data)
    assert parts.written(data) == data  # the checksums are remade as they were
    parts.samples["f1"][2] = label
    path.write_bytes(parts.written(data))
    with pytest.raises(BetonError, match=f"row 2 has the label {label}; labels are classes, 0 to 65535, or -1"):
        open_beton(path)
    with pytest.raises(BetonError, match="row 2 has the label"):
        verify(path)


def test_labels_are_within_the_sidecars_classes_and_minus_one_is_none(jpg_beton, tmp_path):
    data, sidecar = jpg_beton.read_bytes(), jpg_beton.with_suffix(".json").read_text()
    path = tmp_path / "a.beton"
    parts = Parts(data)
    old = open_beton(jpg_beton).table_checksum
    for label, right in ((3, True), (-1, True), (4, False)):
        parts.samples["f1"][5] = label
        new = parts.written(data)
        path.write_bytes(new)
        at = sums_start(FIRST + parts.samples.nbytes)
        sealed = int(np.frombuffer(new, np.uint64, 1, at + 8)[0])
        (tmp_path / "a.json").write_text(sidecar.replace(str(old), str(sealed)))
        if right:
            assert open_beton(path).label[5] == label
        else:
            with pytest.raises(BetonError, match="row 5 has the label 4; labels are classes, 0 to 3"):
                open_beton(path)


def test_a_file_without_sidecar_may_have_as_many_classes_as_rows_or_65536(tmp_path):
    path = small_beton(tmp_path / "a.beton", "raw")
    data = path.read_bytes()
    parts = Parts(data)
    parts.samples["f1"][0], parts.samples["f1"][1] = 65535, -1
    path.write_bytes(parts.written(data))
    assert open_beton(path).label[:2].tolist() == [65535, -1]


def test_a_sidecar_that_is_nonsense_is_not_believed(tmp_path):
    path = small_beton(tmp_path / "a.beton", "raw")
    for text in ("[]", '{"classes": 7}', '{"classes": {"a": 1}}', "{", "\xff\x00"):
        path.with_suffix(".json").write_text(text, encoding="latin-1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert open_beton(path).classes == ["class_0", "class_1"]


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("allocations", "size", 2**63 - 1),
        ("allocations", "size", 2**63),
        ("allocations", "size", 2**64 - 1),
        ("allocations", "size", 0),
        ("allocations", "size", 1 << 22),
        ("header", "num_samples", 0),
        ("header", "num_samples", 2**40),
        ("header", "num_samples", 2**64 - 1),
        ("header", "alloc_table_ptr", 24),
        ("header", "alloc_table_ptr", FIRST),
        ("header", "alloc_table_ptr", 2**64 - 24),
        ("header", "num_fields", 255),
        ("header", "num_fields", 65535),
        ("header", "page_size", 0),
    ],
)
def test_counts_and_offsets_beyond_the_file_are_refused(tmp_path, where, name, value, sums):
    path = small_beton(tmp_path / "a.beton", "jpg")
    data = path.read_bytes()
    parts = Parts(data)
    getattr(parts, where)[name][0] = value
    data = parts.written(data, sums)
    if name == "alloc_table_ptr" and value < len(data):  # long enough for the table to have whole records
        data += bytes(-(len(data) - value) % ALLOCATION.itemsize)
    path.write_bytes(data)
    with pytest.raises(BetonError):
        open_beton(path)


def test_a_size_that_so_few_bytes_can_not_hold_is_refused(tmp_path):
    """The loader makes room for the largest image that the table names."""
    path = small_beton(tmp_path / "a.beton", "jpg")
    data = path.read_bytes()
    parts = Parts(data)
    parts.samples["f0"]["width"][1] = parts.samples["f0"]["height"][1] = 65535
    path.write_bytes(parts.written(data))
    with pytest.raises(BetonError, match="row 1 does not describe an image"):
        open_beton(path)


def test_a_file_of_over_four_gigabytes_is_read(tmp_path):
    """Pages and allocation table beyond what 32 bits can say, in a file with a hole."""
    path = small_beton(tmp_path / "a.beton", "jpg")
    images = decode_rows(open_beton(path), range(6))
    data = path.read_bytes()
    parts = Parts(data)
    far = (5 << 30) // MIN_PAGE * MIN_PAGE
    last = parts.allocations[-1].copy()
    (row,) = np.flatnonzero(parts.samples["f0"]["data_ptr"] == last["ptr"])
    parts.allocations["ptr"][-1] = parts.samples["f0"]["data_ptr"][row] = far
    parts.header["alloc_table_ptr"] = far + MIN_PAGE
    tables = bytearray(data[: sums_start(FIRST + parts.samples.nbytes)])
    tables[: HEADER.itemsize], tables[FIRST : FIRST + parts.samples.nbytes] = (
        parts.header.tobytes(),
        parts.samples.tobytes(),
    )
    row_sums = np.frombuffer(data, np.uint64, 6, len(tables) + 16)
    over_all = np.array([SUMS_MARK, table_checksum(bytes(tables), row_sums, parts.allocations)], np.uint64)
    try:
        with open(path, "r+b") as file:
            file.truncate(
                int(parts.header["alloc_table_ptr"][0])
            )  # the old allocation table becomes a part of the page
            file.write(tables + over_all.tobytes() + row_sums.tobytes())
            file.seek(far)
            file.write(data[int(last["ptr"]) : int(last["ptr"] + last["size"])])
            file.seek(far + MIN_PAGE)
            file.write(parts.allocations.tobytes())
    except OSError as error:
        pytest.skip(f"no file of 5 GB can be made here: {error}")
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no holes")
    beton = open_beton(path)
    assert beton.ptr[row] == far
    assert beton.ptr[row] > 1 << 32
    for image, wanted in zip(decode_rows(beton, range(6)), images):
        assert np.array_equal(image, wanted)
    loader = MultiCropLoader(path, 6, 1, views=[Views(1, 16)])
    assert sorted(next(iter(loader))[0].idx_a.tolist()) == list(range(6))
    loader.close()
    assert "6 images" in verify(path)
    with open(path, "r+b") as file:  # a change of that page is noticed
        file.seek(far + int(last["size"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(LoaderError, match=f"row {row} .*not those that were written"):
        decode_rows(open_beton(path), range(6))


VIEWS = [Views(2, 16), Views(1, 12, interpolation="bicubic"), Views(1, 16, interpolation="bicubic", resize=18)]


def _batch(path):
    """What the loader makes of all rows, [bytes of the groups], and the rows that were replaced.

    Raises BetonError, LoaderError.
    """
    loader = MultiCropLoader(path, 64, 1, seed=1, views=VIEWS, on_error="replace")
    try:
        (groups,) = list(loader)
        return [bytes(g.images.permute(0, 2, 3, 1).contiguous().numpy()) for g in groups], dict(loader.replaced)
    finally:
        loader.close()


def mutated(rng, original):
    """(bytes of a damaged beton, whether its checksums still are those of the original)."""
    parts, data = Parts(original), bytearray(original)
    count = len(parts.samples)
    first, table = int(parts.samples["f0"]["data_ptr"].min()), int(parts.header["alloc_table_ptr"][0])
    end = int((parts.allocations["ptr"] + parts.allocations["size"]).max())
    regions = [
        (0, 32),
        (32, FIRST),
        (FIRST, FIRST + 24 * count),
        (FIRST + 24 * count, FIRST + 32 * count + 16),
        (first, end),
        (first, end),
        (table, len(original)),
    ]
    seal = rng.choice(("kept", "none", "remade", "remade"))
    if rng.random() < 0.5:  # bytes anywhere
        for _ in range(rng.choice((1, 1, 2, 8))):
            low, high = rng.choice(regions)
            at = rng.randrange(low, high)
            data[at] = rng.choice((rng.randrange(256), data[at] ^ (1 << rng.randrange(8)), 0, 255))
        parts = Parts(bytes(data)) if seal == "remade" and data[:32] == original[:32] else None
    else:  # an entry of a table
        row = rng.randrange(count)
        image = parts.samples["f0"]
        what = rng.randrange(7)
        if what < 2:
            name = ("width", "height")[what]
            image[name][row] = rng.choice((0, 1, 7, 8, int(image[name][row]) + rng.choice((-1, 1)), 60, 300, 65535))
        elif what == 2:
            image["mode"][row] = rng.choice((0, 1, 1 - int(image["mode"][row]), 2, 255))
        elif what == 3:
            image["data_ptr"][row] = rng.choice(
                (
                    0,
                    int(image["data_ptr"][rng.randrange(count)]),
                    int(image["data_ptr"][row]) + 1,
                    len(original) - 1,
                    2**63,
                    2**64 - 1,
                )
            )
        elif what == 4:
            size = int(parts.allocations["size"][row])
            parts.allocations["size"][row] = rng.choice(
                (0, 1, 2, 31, 33, size - 1, size + 1, size // 2, 4 * size, 2**32 + size, 2**63 - 1, 2**63)
            )
        elif what == 5:
            place = rng.randrange(count)
            parts.allocations["ptr"][place] = image["data_ptr"][place] = rng.choice(
                (FIRST, first + 1, end - 5, len(original) - 8, len(original))
            )
        else:
            parts.samples["f1"][row] = rng.choice((-1, -2, 7, 65535, 2**31, 2**40, -(2**63)))
        if rng.random() < 0.3:
            for _ in range(4):
                data[rng.randrange(first, end)] = rng.randrange(256)
    if parts is None:
        if seal == "none":
            at = sums_start(FIRST + SAMPLE.itemsize * count)
            data[at : at + 8] = bytes(8)
    elif seal == "kept":  # the tables as they are now, the sums as they were
        at = sums_start(FIRST + parts.samples.nbytes)
        sums = bytes(data[at : at + 16 + 8 * count])
        data = bytearray(parts.written(data))
        data[at : at + len(sums)] = sums
    else:
        data = bytearray(parts.written(data, seal == "remade"))
    if rng.random() < 0.05:
        del data[rng.randrange(len(data)) :]
    return bytes(data), seal == "kept"


def fuzz(folder, count, seed):
    """`count` mutations of a JPEG beton and a raw one.

    Prints how they ended; anything but an error or a right read is an exception.
    """
    warnings.simplefilter("ignore")
    rng, decoder, outcomes = random.Random(seed), Decoder(), {"refused": 0, "row refused": 0, "read": 0}
    target = Path(folder) / "bad.beton"
    originals = []
    for mode in ("jpg", "raw"):
        path = small_beton(Path(folder) / f"{mode}.beton", mode)
        beton = open_beton(path)
        originals.append((path.read_bytes(), decode_rows(beton, range(len(beton))), _batch(path)))
    for trial in range(count):
        original, images, (batch, _) = originals[trial % 2]
        data, sums_kept = mutated(rng, original)
        target.unlink(missing_ok=True)  # a file of its own: threads that run ahead may still read the last one
        target.write_bytes(data)
        signal.alarm(60)  # a hang ends the process
        try:
            beton = open_beton(target)
            sums_kept &= beton.sums.size > 0  # the mark of them may be what was damaged
            wrong = 0
            for row in range(len(beton)):
                image, code = decode_row(beton, row, decoder)
                wrong += code != OK
                if sums_kept and code == OK:
                    assert np.array_equal(image, images[row]), (seed, trial, row)
            groups, replaced = _batch(target)
            if sums_kept and not replaced:
                assert groups == batch, (seed, trial)
            if sums_kept:
                assert len(replaced) == wrong, (seed, trial)
            outcomes["row refused" if wrong else "read"] += 1
        except BetonError:
            outcomes["refused"] += 1
        except LoaderError as error:
            if "no row of" not in str(error):  # "the loader's thread failed" is a fault of the loader's
                raise RuntimeError(f"seed {seed}, trial {trial}") from error
            outcomes["row refused"] += 1
        signal.alarm(0)
    print(outcomes)


def _fuzzed(folder, count, seed, **environment):
    places = [str(Path(__file__).parent), str(ROOT / "tests")]
    code = f"import sys; sys.path[:0] = {places!r}; import test_hostile; "
    code += f"test_hostile.fuzz({str(folder)!r}, {count}, {seed})"
    outcomes = eval(run_forked(folder, code, env=environment, timeout=1700).splitlines()[-1])
    assert sum(outcomes.values()) == count
    return outcomes


@pytest.mark.integration
def test_mutated_betons_end_in_an_error_or_in_a_right_read(tmp_path):
    outcomes = _fuzzed(tmp_path, 100, 0)
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_mutated_betons_never_index_out_of_bounds(tmp_path):
    """numba's kernels with bounds checks; those through raw pointers (simd, libjpeg-turbo) are not seen by it."""
    outcomes = _fuzzed(tmp_path, 2000, 1, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert min(outcomes.values()) > 50, outcomes
