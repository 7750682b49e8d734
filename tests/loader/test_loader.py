"""The loader: right pixels and targets, the same batches always, errors that arrive, nothing left behind."""

import concurrent.futures.thread
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from helpers import corrupt_row, digest, run_forked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from idmm_fast.beton import BetonError, open_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.limits import cores
from idmm_fast.loader import Augment, LoaderError, MultiCropLoader, Views, evaluation_loader
from idmm_fast.loader.decoder import PendingBatch
from idmm_fast.loader.order import Order

VIEWS = [Views(2, 48, (0.14, 1.0)), Views(4, 32, (0.05, 0.4))]


def make(path, workers=1, **kwargs):
    kwargs = {"batch_size": 16, "seed": 7, "views": VIEWS, "num_workers": workers} | kwargs
    return MultiCropLoader(path, **kwargs)


def test_shapes_types_and_crop_major_rows(jpg_beton):
    loader = make(jpg_beton)
    batches = list(loader)
    assert len(batches) == len(loader) == 3  # 40 images: the last batch is partial
    assert [b[0].idx_a.numel() for b in batches] == [32, 32, 16]
    a, b = batches[0]
    assert a.images.shape == (32, 3, 48, 48)
    assert b.images.shape == (64, 3, 32, 32)
    for g, count in ((a, 2), (b, 4)):
        assert g.images.dtype == torch.uint8
        assert g.images.is_contiguous(memory_format=torch.channels_last)
        assert g.idx_a.dtype == g.idx_b.dtype == torch.int64
        assert g.lam.dtype == torch.float32
        assert (g.idx_a.view(count, 16) == g.idx_a[:16]).all()
    assert sorted(torch.cat([x[0].idx_a[: x[0].idx_a.numel() // 2] for x in batches]).tolist()) == list(range(40))
    assert len(make(jpg_beton, drop_last=True)) == len(list(make(jpg_beton, drop_last=True))) == 2


@pytest.mark.parametrize("beton", ["jpg_beton", "raw_beton"])
def test_batches_do_not_depend_on_the_number_of_workers(request, beton):
    path = request.getfixturevalue(beton)
    one = make(path, 1)
    two = make(path, 2, batches_ahead=4)
    for epoch in range(2):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        assert digest(one) == digest(two)


def test_seed_and_epoch_change_the_batches(raw_beton):
    digests = set()
    for seed in (0, 1):
        loader = make(raw_beton, seed=seed)
        digests |= {digest(loader), digest(loader)}
    assert len(digests) == 4


def test_resume_in_mid_epoch_gives_the_same_batches(raw_beton):
    loader = make(raw_beton)
    loader.set_epoch(3)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 3, "step": 1}
    rest = [b[1].images.clone() for b in iterator]
    fresh = make(raw_beton)
    fresh.load_state_dict(state)
    again = [b[1].images for b in fresh]
    assert len(rest) == len(again) == 2
    assert all(torch.equal(x, y) for x, y in zip(rest, again))
    assert fresh.state_dict() == {"epoch": 4, "step": 0}


def in_pil(image, sample, size):
    """The recipe in PIL and torchvision, with the parameters sampled.

    PIL cuts off to whole levels after every operation.
    """
    crop = F.resized_crop(
        image, int(sample["top"]), int(sample["left"]), int(sample["height"]), int(sample["width"]), [size, size]
    )
    crop = F.hflip(crop) if sample["flip"] else crop
    if sample["jitter"]:
        for k in sample["order"]:
            name = ("brightness", "contrast", "saturation", "hue")[k]
            crop = getattr(F, f"adjust_{name}")(crop, float(sample[name]))
    crop = F.to_grayscale(crop, 3) if sample["gray"] else crop
    if sample["sigma"] > 0:
        crop = crop.filter(ImageFilter.GaussianBlur(float(sample["sigma"])))
    return np.asarray(crop).astype(int)


def in_floats(image, sample, size):
    """The same without rounding: torchvision's operations on float tensors, SciPy's Gaussian."""
    crop = F.resized_crop(
        image, int(sample["top"]), int(sample["left"]), int(sample["height"]), int(sample["width"]), [size, size]
    )
    crop = F.to_tensor(F.hflip(crop) if sample["flip"] else crop)
    if sample["jitter"]:
        for k in sample["order"]:
            name = ("brightness", "contrast", "saturation", "hue")[k]
            crop = getattr(F, f"adjust_{name}")(crop, float(sample[name]))
    crop = F.rgb_to_grayscale(crop, 3) if sample["gray"] else crop
    crop = crop.numpy() * 255
    if sample["sigma"] > 0:
        crop = gaussian_filter(
            crop.astype(np.float64), (0, sample["sigma"], sample["sigma"]), mode="nearest", truncate=6
        )
    return np.floor(crop + 0.5).transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize(
    ("reference", "augment", "mean", "within_two"),
    [
        (in_pil, Augment.none(), 0.25, 1.0),
        (in_pil, Augment(), 1.0, 0.9),
        (in_floats, Augment(), 0.2, 0.99),  # what is left is PIL's rounding in the resize, enlarged by contrast and hue
    ],
)
def test_whole_chain_on_photographs(jpg_beton, reference, augment, mean, within_two):
    loader = make(jpg_beton, augment=augment, cutmix_alpha=0, shuffle=False)
    source = decode_rows(open_beton(jpg_beton), range(16))
    for _ in range(2):
        batch = next(iter(loader))
        samples = loader.decoder.sample_crops(loader.epoch, range(16))
        errors, v = [], 0
        for spec, group in zip(loader.views, batch):
            for place in range(spec.count):
                for b in range(16):
                    ours = group.images[place * 16 + b].permute(1, 2, 0).numpy().astype(int)
                    errors.append(
                        np.abs(ours - reference(Image.fromarray(source[b]), samples[v, b], spec.size)).ravel()
                    )
                v += 1
        errors = np.concatenate(errors)
        assert errors.mean() < mean
        assert (errors <= 2).mean() >= within_two


@pytest.mark.parametrize(
    "how", [{}, {"cutmix_per_row": True}, {"cutmix_chunk": 4}, {"cutmix_chunk": 8, "cutmix_per_row": True}]
)
def test_cutmix_pastes_what_the_target_says(raw_beton, how):
    """Every pixel of a mixed batch, from the unmixed batch of the same samples, and lam counted from the pixels."""
    mixed, plain = make(raw_beton, **how), make(raw_beton, cutmix_alpha=0)
    seen = 0
    for epoch in range(4):
        mixed.set_epoch(epoch)
        plain.set_epoch(epoch)
        for step, (with_, without) in enumerate(zip(mixed, plain)):
            batch = without[0].idx_a.numel() // 2
            for spec, g, p, mix in zip(mixed.views, with_, without, mixed.decoder.sample_cutmix(epoch, step, batch)):
                inside = torch.zeros(len(mix.box), spec.size, spec.size, dtype=torch.bool)
                for mask, (top, left, bottom, right) in zip(inside, mix.box):
                    mask[top:bottom, left:right] = True
                partner = torch.from_numpy(mix.partner)
                assert torch.equal(g.images, torch.where(inside[:, None], p.images[partner], p.images))
                assert torch.equal(g.idx_a, p.idx_a)
                assert torch.equal(g.idx_b, g.idx_a[partner])
                assert torch.equal(g.lam, (1 - inside.sum((1, 2)).double() / spec.size**2).float())
                seen += int((g.lam < 1).any())
            assert torch.equal(without[0].idx_a, without[0].idx_b)
            assert (without[0].lam == 1).all()
    assert seen > 12


@pytest.mark.parametrize("world", [2, 4])
def test_processes_see_the_parts_of_what_one_sees(raw_beton, world):
    """With chunks that divide the per-process batch; 40 images in batches of 16, so that the last batch is partial."""
    chunk = 8 // world
    one = make(raw_beton, batch_size=16, cutmix_chunk=chunk)
    parts = [
        make(raw_beton, batch_size=16 // world, cutmix_chunk=chunk, rank=r, world_size=world) for r in range(world)
    ]
    assert {len(p) for p in parts} == {len(one)} == {3}
    for epoch in range(2):
        for loader in (one, *parts):
            loader.set_epoch(epoch)
        for whole, *pieces in zip(one, *parts, strict=True):
            for g, spec in enumerate(VIEWS):
                for name in ("images", "idx_a", "idx_b", "lam"):
                    # crop-major rows: put the processes side by side within each crop
                    split = [
                        getattr(p[g], name).reshape(spec.count, -1, *getattr(p[g], name).shape[1:]) for p in pieces
                    ]
                    assert torch.equal(torch.cat(split, 1).flatten(0, 1), getattr(whole[g], name)), name


def test_without_chunks_each_process_has_a_box_of_its_own(raw_beton):
    boxes = [
        make(raw_beton, batch_size=8, rank=rank, world_size=2).decoder.sample_cutmix(0, step, 8, 8 * rank)[0].box[0]
        for rank in (0, 1)
        for step in range(4)
    ]
    assert len({tuple(box) for box in boxes}) == 8


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 16), st.integers(1, 8))
def test_processes_divide_every_batch_evenly(images, units, world, unit):
    """Every image is in one part, and parts differ by one unit at most; a batch that is less than one each is none."""
    batch = units * unit
    parts = [Order(np.arange(images), 0, False, False, batch, rank, world, unit) for rank in range(world)]
    (steps,) = {len(part) for part in parts}
    full, left = divmod(images, batch * world)
    assert steps == full + (-(-left // unit) >= world)
    for step in range(steps):
        rows, first = zip(*(part.local_rows(part.indices, step) for part in parts))
        assert np.concatenate(rows).tolist() == list(range(images)[step * batch * world : (step + 1) * batch * world])
        sizes = [-(-len(own) // unit) for own in rows]
        assert 1 <= min(sizes) <= max(sizes) <= min(min(sizes) + 1, units)
        assert all(place % unit == 0 for place in first)


def test_decoding_is_libjpeg_turbos_accurate_path(jpg_beton):
    """Bit for bit what PIL, whose decoder is libjpeg-turbo with its accurate inverse DCT, makes of the same bytes."""
    import io

    beton = open_beton(jpg_beton)
    for row, image in enumerate(decode_rows(beton, range(len(beton)))):
        data = bytes(beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]])
        assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(data))))


def test_evaluation_view_is_torchvisions_resize_and_centre_crop(jpg_beton):
    source = decode_rows(open_beton(jpg_beton), range(40))
    seen = 0
    for (group,) in evaluation_loader(jpg_beton, 16, 56, interpolation="bilinear"):
        for image, row in zip(group.images, group.idx_a):
            wanted = F.center_crop(F.resize(Image.fromarray(source[row]), 64), 56)
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted).astype(int)).max() <= 1
            assert row == seen
            seen += 1
    assert seen == 40


def test_batches_stay_valid_while_they_are_held(raw_beton):
    loader = make(raw_beton, batch_size=4, batches_ahead=1)
    held = list(loader)
    loader.set_epoch(0)
    for kept, fresh in zip(held, loader):
        assert torch.equal(kept[0].images, fresh[0].images)


def forget_checksums(path):
    data = bytearray(path.read_bytes())
    at = data.index(b"IDMMSUMS")
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)


@pytest.mark.parametrize("sums", [True, False], ids=["checksums", "none"])
@pytest.mark.parametrize("how", ["noise", "half"])
def test_corrupt_image_names_row_and_file(jpg_beton, tmp_path, how, sums):
    path = corrupt_row(jpg_beton, tmp_path / "bad.beton", 17, how)
    if not sums:
        forget_checksums(path)
    began = time.perf_counter()
    with pytest.raises(LoaderError, match=r"row 17 of .*bad\.beton"):
        for _ in make(path, 2):
            pass
    assert time.perf_counter() - began < 5


def test_corrupt_image_is_replaced_and_counted_where_that_is_asked_for(jpg_beton, tmp_path):
    """Whatever the number of workers, the next row replaces it, pixels and targets, as if it had been in that place."""
    path = corrupt_row(jpg_beton, tmp_path / "bad.beton", 17, "half")
    digests = set()
    for workers in (1, 2):
        loader = make(path, workers, on_error="replace", cutmix_alpha=0)
        with pytest.warns(UserWarning, match=r"row 17 of .*bad\.beton.*row 18 replaces it"):
            batches = list(loader)
        assert list(loader.replaced) == [17]
        assert loader.replaced[17][0] == 18
        rows = torch.cat([b[0].idx_a[: b[0].idx_a.numel() // 2] for b in batches])
        assert sorted(rows.tolist()) == sorted([18 if r == 17 else r for r in range(40)])
        twice = [
            b[0].images[k]
            for b in batches
            for k in torch.nonzero(b[0].idx_a[: b[0].idx_a.numel() // 2] == 18).flatten()
        ]
        assert len(twice) == 2
        assert torch.equal(twice[0], twice[1])
        loader.set_epoch(0)
        digests.add(digest(loader))
    assert len(digests) == 1


def test_no_replacement_image_left_is_an_error(jpg_beton, tmp_path):
    path = corrupt_row(jpg_beton, tmp_path / "bad.beton", 17, "half")
    corrupt_row(path, tmp_path / "worse.beton", 18, "half")
    with pytest.warns(UserWarning, match="replaces it"), pytest.raises(LoaderError, match="no row of"):
        list(make(tmp_path / "worse.beton", rows=[17, 18], on_error="replace"))


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_leaves_out_what_can_not_be_decoded(jpg_beton, tmp_path, workers):
    """Rows 9 .. 15, among them all of a batch, and the first and last; the others as they are without the damage."""
    damaged, path = [0, *range(9, 16), 39], jpg_beton
    for k, row in enumerate(damaged):
        path = corrupt_row(path, tmp_path / f"{k}.beton", row, "half")
    whole = torch.cat([group.images for (group,) in evaluation_loader(jpg_beton, 4, 32)])
    with pytest.raises(LoaderError, match="row 0 of"):
        list(evaluation_loader(path, 4, 32, workers))
    loader = evaluation_loader(path, 4, 32, workers, on_error="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # the second time without a warning
            groups = [group for (group,) in loader]
    assert [group.idx_a.numel() for group in groups] == [3, 4, 1, 0, 4, 4, 4, 4, 4, 3]
    assert sorted(loader.skipped) == damaged
    assert all("bytes are not those" in why for why in loader.skipped.values()), loader.skipped
    assert sorted(int(str(w.message).split()[1]) for w in caught) == damaged
    left = torch.tensor([row for row in range(40) if row not in damaged])
    assert torch.equal(torch.cat([group.idx_a for group in groups]), left)
    assert torch.equal(torch.cat([group.idx_b for group in groups]), left)
    assert torch.equal(torch.cat([group.images for group in groups]), whole[left])
    for group in groups:
        assert group.images.is_contiguous(memory_format=torch.channels_last)
        assert group.images.shape == (group.idx_a.numel(), 3, 32, 32)
        assert group.lam.tolist() == [1.0] * group.idx_a.numel()
    with pytest.warns(UserWarning, match="left out"):
        ((nothing,),) = evaluation_loader(path, 4, 32, workers, rows=[9, 10, 11], on_error="skip")
    assert nothing.images.shape == (0, 3, 32, 32)
    assert nothing.idx_a.dtype == torch.int64


def test_mixing_can_not_be_switched_on_where_images_are_skipped(raw_beton):
    with pytest.raises(ValueError, match="without mixing"):
        evaluation_loader(raw_beton, 4, 32, on_error="skip").cutmix_alpha = 0.5


@pytest.mark.timeout(60)
def test_a_row_that_comes_twice_can_be_replaced(jpg_beton, tmp_path):
    """A row is its own next neighbour in the order of the rows if it comes twice."""
    path = corrupt_row(jpg_beton, tmp_path / "bad.beton", 17, "half")
    loader = make(path, rows=[17, 17, 30, 17], on_error="replace", cutmix_alpha=0)
    with pytest.warns(UserWarning, match="row 30 replaces it"):
        (batch,) = list(loader)
    assert set(batch[0].idx_a.tolist()) == {30}
    assert list(loader.replaced) == [17]
    with pytest.warns(UserWarning, match="replaces it"), pytest.raises(LoaderError, match="no row of"):
        list(make(path, rows=[17, 17], on_error="replace"))


def test_wrong_size_in_the_table_is_refused(jpg_beton, tmp_path):
    """Stock FFCV decodes into a buffer of the table's size, whatever the JPEG says, and overruns it."""
    from idmm_fast.beton.format import FIELD, HEADER, SAMPLE

    path = tmp_path / "lie.beton"
    shutil.copy(jpg_beton, path)
    at = HEADER.itemsize + 2 * FIELD.itemsize + 5 * SAMPLE.itemsize
    with open(path, "r+b") as file:
        file.seek(at)
        record = np.frombuffer(file.read(SAMPLE.itemsize), SAMPLE).copy()
        record["f0"]["width"] //= 2
        file.seek(at)
        file.write(record.tobytes())
    with pytest.raises(BetonError, match="tables are not those that were written"):
        make(path)
    forget_checksums(path)  # as in a file by another writer
    with pytest.raises(LoaderError, match=r"row 5 .* width and height"):
        list(make(path))


def test_any_error_in_the_thread_reaches_the_consumer(raw_beton, monkeypatch):
    loader = make(raw_beton)
    monkeypatch.setattr(loader.decoder, "decode_batch", lambda *_: 1 / 0)
    began = time.perf_counter()
    with pytest.raises(LoaderError, match="ZeroDivisionError"):
        next(iter(loader))
    assert time.perf_counter() - began < 1


def test_leaving_early_leaves_no_thread(raw_beton):
    loader = make(raw_beton, 2, batch_size=4)
    next(iter(loader))
    gc.collect()
    before = threading.active_count()
    for _ in range(100):
        for _batch in loader:
            break
    gc.collect()
    assert threading.active_count() <= before
    assert len(loader.buffers._buffers) <= loader.batches_ahead + 2


def test_dropped_loader_ends_its_threads(raw_beton):
    before = threading.active_count()
    loader = make(raw_beton, 2)
    list(loader)
    assert threading.active_count() > before
    del loader
    gc.collect()
    time.sleep(0.2)
    assert threading.active_count() <= before


def test_two_loaders_at_once(raw_beton, jpg_beton):
    alone = [b[0].images.clone() for b in make(raw_beton, 2)]
    for wanted, one, _ in zip(alone, make(raw_beton, 2), make(jpg_beton, 2)):
        assert torch.equal(one[0].images, wanted)


def test_forked_child_can_load(raw_beton):
    loader = make(raw_beton, 2)
    wanted = digest(loader)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loader.set_epoch(0)
            os.write(writer, digest(loader).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 64).decode() == wanted


FIRST_BATCH = """
import sys, time
from idmm_fast.loader import MultiCropLoader, Views
began = time.perf_counter()
views = [Views(2, 48, (0.14, 1.0)), Views(4, 32, (0.05, 0.4))]
loader = MultiCropLoader(sys.argv[1], 16, num_workers=2, seed=7, views=views)
batch = next(iter(loader))
print(time.perf_counter() - began, int(batch[1].images.sum()))
"""


@pytest.mark.integration
def test_a_second_process_has_its_first_batch_within_three_seconds(jpg_beton, tmp_path):
    """The kernels are compiled once a machine; FFCV compiles for 10 s in every process."""
    list(make(jpg_beton))
    seconds, total = run_forked(tmp_path, FIRST_BATCH, jpg_beton).splitlines()[-1].split()
    assert float(seconds) < 3
    assert int(total) == int(next(iter(make(jpg_beton, 2)))[1].images.sum())


def _sum_of_first_batch(path):
    return int(next(iter(make(path, 2)))[1].images.sum())


@pytest.mark.integration
def test_spawned_process_can_load(raw_beton):
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_sum_of_first_batch, (raw_beton,)) == _sum_of_first_batch(raw_beton)


@pytest.mark.integration
@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_training_and_evaluation_loaders_run_at_once_under_any_threading_layer(raw_beton, layer, tmp_path):
    """FFCV's two loaders abort the process under numba's workqueue layer; ours use none of numba's layers."""
    code = (
        "import sys\n"
        "from idmm_fast.loader import MultiCropLoader, Views, evaluation_loader\n"
        "train = MultiCropLoader(sys.argv[1], 8, num_workers=2, views=[Views(2, 32)])\n"
        "print(sum(1 for _ in zip(train, evaluation_loader(sys.argv[1], 8, 32, num_workers=2))))"
    )
    said = run_forked(tmp_path, code, raw_beton, env={"NUMBA_THREADING_LAYER": layer})
    assert said.splitlines()[-1] == "5"


@pytest.mark.integration
def test_memory_beyond_the_data_is_bounded_for_a_table_of_imagenets_size(tmp_path):
    """Opening and 4 batches take at most the batches ahead, one decoded image a thread, and 300 MB.

    1,281,167 rows (all of one image of 500 x 375), batches of 256. Stock FFCV: 1.9 GB of scratch, 633 MB of
    dictionaries.
    """
    from idmm_fast.beton.format import ALLOCATION, DEFAULT_PAGE, HEADER, SAMPLE, VERSION, fields

    rows, image = 1_281_167, np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    table = np.zeros(rows, SAMPLE)
    start = HEADER.itemsize + fields().nbytes + table.nbytes
    at = -(-start // DEFAULT_PAGE) * DEFAULT_PAGE
    table["f0"] = (1, 500, 375, at)
    allocations = np.zeros(rows, ALLOCATION)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = np.arange(rows), at, image.size
    header = np.array([(VERSION, 2, DEFAULT_PAGE, rows, at + DEFAULT_PAGE)], HEADER)
    path = tmp_path / "large.beton"
    with open(path, "wb") as file:
        file.write(header.tobytes() + fields().tobytes() + table.tobytes())
        file.seek(at)
        file.write(image.tobytes())
        file.seek(at + DEFAULT_PAGE)
        file.write(allocations.tobytes())
    code = """
import sys, time
from idmm_fast.loader import MultiCropLoader
def anonymous():
    return int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("RssAnon"))) / 1024
before, began = anonymous(), time.perf_counter()
loader = MultiCropLoader(sys.argv[1], 256, num_workers=2)
opened, peak = time.perf_counter() - began, 0
for _, batch in zip(range(6), loader):
    peak = max(peak, anonymous())
print(opened, peak - before)
"""
    opened, used = map(float, run_forked(tmp_path, code, path).splitlines()[-1].split())
    batches = 4 * 256 * 6 * 112 * 112 * 3 / 2**20
    assert used < batches + 2 * image.size / 2**20 + 300, (used, batches)
    assert opened < 2


def test_a_batch_that_the_programs_end_cut_short_is_an_error(monkeypatch):
    """Its memory still holds the pixels of an earlier one."""
    monkeypatch.setattr(concurrent.futures.thread, "_shutdown", True)
    made = []
    batch = PendingBatch([(0, 1)], lambda first, last: made.append(first), lambda error: error)
    batch._run()
    assert isinstance(batch.result(), RuntimeError)
    assert made == []


@pytest.mark.integration
def test_torchs_threads_are_left_alone(raw_beton, tmp_path):
    """In a process of its own, since importing FFCV is what changes them."""
    code = (
        "import os, torch; torch.set_num_threads(2)\n"
        "from idmm_fast.loader import MultiCropLoader, Views\n"
        f"loader = MultiCropLoader({str(raw_beton)!r}, 8, num_workers=1, views=[Views(1, 16)])\n"
        "next(iter(loader)); assert torch.get_num_threads() == 2, torch.get_num_threads()"
    )
    run_forked(tmp_path, code)


@pytest.mark.integration
def test_torchs_matrix_products_are_left_alone():
    """FFCV's library needs OpenCV, which may need a plain BLAS.

    Its names must not be seen by what is loaded later, torch above all.
    """
    code = "import ctypes, idmm_fast.beton.jpeg\nassert not hasattr(ctypes.CDLL(None), 'sgemm_')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"cutmix_alpha": -1}, "cutmix_alpha"),
        ({"views": []}, "views"),
        ({"rows": [99]}, "rows"),
        ({"seed": -1}, "seed"),
        ({"cutmix_chunk": 5}, "cutmix_chunk"),
        ({"on_error": "ignore"}, "on_error"),
        ({"on_error": "skip"}, "without mixing"),
        ({"on_error": "skip", "cutmix_alpha": 0}, "views of count 1"),
        ({"rank": 2, "world_size": 2}, "rank"),
    ],
)
def test_bad_arguments_say_what_is_wrong(raw_beton, change, says):
    with pytest.raises(ValueError, match=says):
        make(raw_beton, **change)


def test_too_many_workers_are_clamped_with_a_warning(raw_beton):
    with pytest.warns(UserWarning, match="cores"):
        loader = make(raw_beton, 4096)
    assert loader.num_workers == cores()


def test_a_second_iteration_ends_the_first_audibly(raw_beton):
    loader = make(raw_beton)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(RuntimeError, match="was ended by a later iter"):
        next(first)
    assert len(list(second)) == 3
    third = iter(loader)
    loader.load_state_dict({"epoch": 0, "step": 1})
    with pytest.raises(RuntimeError, match="was ended by a later iter"):
        next(third)
    list(loader)
    with pytest.raises(StopIteration):  # it was over before another one began
        next(second)


CALLS = st.one_of(
    st.tuples(st.just("set_epoch"), st.integers(0, 2)),
    st.tuples(st.just("load_state_dict"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("iter")),
    st.tuples(st.just("next")),
    st.tuples(st.just("next")),
    st.tuples(st.just("close")),
)


@given(st.lists(CALLS, max_size=12))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_calls_in_any_order_hand_out_the_batches_that_the_state_says(raw_beton, calls):
    """Against a model: where the next iteration begins, where the current one is, which of the two was set last.

    An iteration that is closed is over for its handle as soon as that is asked, unless another one began before.
    """
    options = {"views": [Views(1, 8)], "augment": Augment.none(), "cutmix_alpha": 0}
    loader, steps = make(raw_beton, **options), 3
    begin, at, told, closed, over, handle = (0, 0), None, False, False, False, None
    for name, *values in calls:
        if name == "set_epoch":
            loader.set_epoch(*values)
            begin, told = (values[0], 0), True
        elif name == "load_state_dict":
            loader.load_state_dict({"epoch": values[0], "step": values[1]})
            begin, at, told = tuple(values), None, True
        elif name == "iter":
            handle = iter(loader)
            at, begin, told, closed, over = begin, (begin[0] + 1, 0), False, False, False
        elif name == "close":
            loader.close()
            closed = closed or at is not None
        elif handle is not None:
            if at is None and not over:
                with pytest.raises(RuntimeError, match="was ended"):
                    next(handle)
            elif over or closed or at[1] >= steps:
                over = True
                assert next(handle, None) is None
            else:
                (group,) = next(handle)
                order = loader.traversal_order.sample_order(at[0])
                assert group.idx_a.tolist() == order[16 * at[1] : 16 * at[1] + 16].tolist()
                at = at[0], at[1] + 1
        expected = begin if told or at is None or at[1] >= steps else at
        assert loader.state_dict() == {"epoch": expected[0], "step": expected[1]}, calls
    loader.close()


def test_subset_of_rows(raw_beton):
    rows = [3, 5, 8, 13, 21]
    batches = list(make(raw_beton, rows=rows, batch_size=2))
    assert sorted(i for b in batches for i in b[0].idx_a[: b[0].idx_a.numel() // 2].tolist()) == rows


def test_rows_as_a_mask(raw_beton):
    mask = np.arange(40) % 3 == 1
    for rows in (mask, mask.tolist(), torch.from_numpy(mask)):
        assert make(raw_beton, rows=rows).indices.tolist() == list(range(1, 40, 3))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.ones(39, bool), "mask"),
        ([True, False], "mask"),
        (np.ones((40, 1), bool), "mask"),
        (np.zeros(40, bool), "none of the 40"),
        ([], "none of the 40"),
        ([1.0, 2.0], "integers.*float64"),
        ([[1, 2]], "shape"),
        (7, "shape"),
        ([2**63], "0..39"),
        ([-1], "0..39"),
        (["3"], "integers"),
    ],
)
def test_rows_that_are_none_are_refused(raw_beton, rows, says):
    with pytest.raises(ValueError, match=says):
        make(raw_beton, rows=rows)
