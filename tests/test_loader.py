"""The loader as a whole: right pixels, right targets, the same batches always, errors that arrive, nothing left behind."""

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from idmm_fast.beton import open_beton
from idmm_fast.loader import Augment, LoaderError, MultiCropLoader, Views, evaluation_loader
from idmm_fast.loader.whole import decode_rows

VIEWS = [Views(2, 48, (0.14, 1.0)), Views(4, 32, (0.05, 0.4))]


def make(path, workers=1, **kwargs):
    kwargs = {"batch_size": 16, "seed": 7, "views": VIEWS, "num_workers": workers} | kwargs
    return MultiCropLoader(path, **kwargs)


def digest(loader):
    result = hashlib.sha256()
    for batch in loader:
        for g in batch:
            for t in (g.images.permute(0, 2, 3, 1), g.idx_a, g.idx_b, g.lam):
                result.update(t.numpy().tobytes())
    return result.hexdigest()


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


def in_pil(image, draw, size):
    """The recipe in PIL and torchvision, with the parameters drawn; PIL cuts off to whole levels after every operation."""
    view = F.resized_crop(
        image, int(draw["top"]), int(draw["left"]), int(draw["height"]), int(draw["width"]), [size, size]
    )
    view = F.hflip(view) if draw["flip"] else view
    if draw["jitter"]:
        for k in draw["order"]:
            name = ("brightness", "contrast", "saturation", "hue")[k]
            view = getattr(F, f"adjust_{name}")(view, float(draw[name]))
    view = F.to_grayscale(view, 3) if draw["gray"] else view
    if draw["sigma"] > 0:
        view = view.filter(ImageFilter.GaussianBlur(float(draw["sigma"])))
    return np.asarray(view).astype(int)


def in_floats(image, draw, size):
    """The same without rounding: torchvision's operations on float tensors, SciPy's Gaussian."""
    view = F.resized_crop(
        image, int(draw["top"]), int(draw["left"]), int(draw["height"]), int(draw["width"]), [size, size]
    )
    view = F.to_tensor(F.hflip(view) if draw["flip"] else view)
    if draw["jitter"]:
        for k in draw["order"]:
            name = ("brightness", "contrast", "saturation", "hue")[k]
            view = getattr(F, f"adjust_{name}")(view, float(draw[name]))
    view = F.rgb_to_grayscale(view, 3) if draw["gray"] else view
    view = view.numpy() * 255
    if draw["sigma"] > 0:
        view = gaussian_filter(view.astype(np.float64), (0, draw["sigma"], draw["sigma"]), mode="nearest", truncate=6)
    return np.floor(view + 0.5).transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize(("reference", "augment", "mean", "within_two"), [
    (in_pil, Augment.none(), 0.25, 1.0),
    (in_pil, Augment(), 1.0, 0.9),
    (in_floats, Augment(), 0.2, 0.99),  # what is left is PIL's rounding in the resize, enlarged by contrast and hue
])  # fmt: skip
def test_whole_chain_on_photographs(jpg_beton, reference, augment, mean, within_two):
    loader = make(jpg_beton, augment=augment, cutmix_alpha=0, shuffle=False)
    source = decode_rows(open_beton(jpg_beton), range(16))
    for _ in range(2):
        batch = next(iter(loader))
        draws = loader.operation.draws(loader.epoch, range(16))
        errors, v = [], 0
        for spec, group in zip(loader.views, batch):
            for place in range(spec.count):
                for b in range(16):
                    ours = group.images[place * 16 + b].permute(1, 2, 0).numpy().astype(int)
                    errors.append(np.abs(ours - reference(Image.fromarray(source[b]), draws[v, b], spec.size)).ravel())
                v += 1
        errors = np.concatenate(errors)
        assert errors.mean() < mean
        assert (errors <= 2).mean() >= within_two


def test_cutmix_pastes_what_the_target_says(raw_beton):
    """Every pixel of a mixed batch, from the unmixed batch of the same draws, and the share counted from the box."""
    mixed, plain = make(raw_beton), make(raw_beton, cutmix_alpha=0)
    seen = 0
    for epoch in range(4):
        mixed.set_epoch(epoch)
        plain.set_epoch(epoch)
        for step, (with_, without) in enumerate(zip(mixed, plain)):
            batch = without[0].idx_a.numel() // 2
            for spec, g, p, mix in zip(mixed.views, with_, without, mixed.operation.cutmix(epoch, step, batch)):
                top, left, bottom, right = mix.box
                partner = torch.from_numpy(mix.partner)
                wanted = p.images.clone()
                wanted[:, :, top:bottom, left:right] = p.images[partner, :, top:bottom, left:right]
                assert torch.equal(g.images, wanted)
                assert torch.equal(g.idx_a, p.idx_a)
                assert torch.equal(g.idx_b, g.idx_a[partner])
                share = 1 - (bottom - top) * (right - left) / spec.size**2
                assert torch.equal(g.lam, torch.full_like(g.lam, share))
                seen += share < 1
            assert torch.equal(without[0].idx_a, without[0].idx_b)
            assert (without[0].lam == 1).all()
    assert seen > 12


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


def corrupt(path, target, row, how):
    shutil.copy(path, target)
    beton = open_beton(target)
    start, length = int(beton.ptr[row]), int(beton.length[row])
    with open(target, "r+b") as file:
        if how == "noise":
            file.seek(start)
            file.write(os.urandom(length))
        else:  # the first half of a JPEG, then zeros
            file.seek(start + length // 2)
            file.write(bytes(length - length // 2))
    return target


@pytest.mark.parametrize("how", ["noise", "half"])
def test_corrupt_image_names_row_and_file(jpg_beton, tmp_path, how):
    path = corrupt(jpg_beton, tmp_path / "bad.beton", 17, how)
    began = time.perf_counter()
    with pytest.raises(LoaderError, match=r"row 17 of .*bad\.beton"):
        for _ in make(path, 2):
            pass
    assert time.perf_counter() - began < 5


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
    with pytest.raises(LoaderError, match=r"row 5 .* width and height"):
        list(make(path))


def test_any_error_in_the_thread_reaches_the_consumer(raw_beton, monkeypatch):
    loader = make(raw_beton)
    monkeypatch.setattr(loader.operation, "make", lambda *_: 1 / 0)
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


def test_torchs_threads_are_left_alone(raw_beton):
    """In a process of its own, since importing FFCV is what changes them."""
    code = (
        "import os, torch; torch.set_num_threads(2)\n"
        "from idmm_fast.loader import MultiCropLoader, Views\n"
        f"loader = MultiCropLoader({str(raw_beton)!r}, 8, num_workers=1, views=[Views(1, 16)])\n"
        "next(iter(loader)); assert torch.get_num_threads() == 2, torch.get_num_threads()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("change", "says"), [
    ({"batch_size": 0}, "batch_size"), ({"cutmix_alpha": -1}, "cutmix_alpha"), ({"views": []}, "views"), ({"rows": [99]}, "rows"), ({"seed": -1}, "seed"),
])  # fmt: skip
def test_bad_arguments_say_what_is_wrong(raw_beton, change, says):
    with pytest.raises(ValueError, match=says):
        make(raw_beton, **change)


def test_too_many_workers_are_clamped_with_a_warning(raw_beton):
    with pytest.warns(UserWarning, match="cores"):
        loader = make(raw_beton, 4096)
    assert loader.num_workers == len(os.sched_getaffinity(0))


def test_subset_of_rows(raw_beton):
    rows = [3, 5, 8, 13, 21]
    batches = list(make(raw_beton, rows=rows, batch_size=2))
    assert sorted(i for b in batches for i in b[0].idx_a[: b[0].idx_a.numel() // 2].tolist()) == rows
