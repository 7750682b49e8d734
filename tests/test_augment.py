"""Each augmentation against PIL, torchvision or SciPy on the same parameters. Tolerances are in levels of 0..255."""

import itertools

import numpy as np
import pytest
import timm.data.auto_augment as timm_aa
import torch
import torchvision.transforms.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from idmm_fast import resize
from idmm_fast.loader import blur, color, randaugment
from idmm_fast.resize import taps, weights

SIZE = 112


@pytest.fixture(scope="module")
def patches(photos):
    """Photographs resized to 112 x 112, uint8; one is colourless and one nearly so."""
    result = [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.BILINEAR)) for p in photos[:6]]
    result.append(np.repeat(result[0][:, :, :1], 3, axis=2))
    result.append((result[1] // 64 + 100).astype(np.uint8))
    return result


def planes_of(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)


def levels(planes):
    return np.floor(np.clip(planes.transpose(1, 2, 0), 0, 255) + 0.5)


def crop_resize(image, top, left, h, w, size, bicubic=False, flip=False, first=(0, 0), full=None):
    full = full or (size, size)
    starts, tables = np.zeros((2, size), np.int64), np.zeros((2, size, taps(bicubic, max(h, w), min(full))), np.float32)
    down = weights(bicubic, h, full[0], first[0], size, False, starts[0], tables[0])
    across = weights(bicubic, w, full[1], first[1], size, flip, starts[1], tables[1])
    planes = np.empty((3, size, size), np.float32)
    scratch = np.empty(resize.scratch_size(size, w, h), np.float32)
    resample = resize.crop_resize_rounded if bicubic else resize.crop_resize
    resample(image, top, left, starts[0], down, tables[0], starts[1], across, tables[1], w, scratch, planes)
    return levels(planes)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_resize_is_torchvisions(photos, interpolation):
    """On PIL images, within 1 level at every pixel (PIL rounds between its two passes, and at the end where we do not)."""
    rng = np.random.default_rng(0)
    mode = F.InterpolationMode(interpolation)
    means = []
    for photo in photos[:24]:
        h, w = rng.integers(8, photo.shape[0]), rng.integers(8, photo.shape[1])
        top, left = rng.integers(0, photo.shape[0] - h + 1), rng.integers(0, photo.shape[1] - w + 1)
        flip = bool(rng.integers(2))
        wanted = F.resized_crop(Image.fromarray(photo), top, left, h, w, [SIZE, SIZE], mode)
        wanted = np.asarray(F.hflip(wanted) if flip else wanted).astype(int)
        error = np.abs(crop_resize(photo, top, left, h, w, SIZE, interpolation == "bicubic", flip) - wanted)
        assert error.max() <= 1, (h, w)
        means.append(error.mean())
    assert np.mean(means) < 0.2


def test_one_pixel_crop_and_no_op():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert (crop_resize(image, 7, 9, 1, 1, 8) == image[7, 9]).all()
    assert (crop_resize(image, 3, 5, 30, 30, 30) == image[3:33, 5:35]).all()


PROGRAM = np.empty(color.PROGRAM, np.float32)
OPERATIONS = {
    "brightness": (color.adjust_brightness, F.adjust_brightness, (0.2, 0.7, 1.0, 1.8)),
    "contrast": (color.adjust_contrast, F.adjust_contrast, (0.2, 0.7, 1.0, 1.8)),
    "saturation": (color.adjust_saturation, F.adjust_saturation, (0.0, 0.7, 1.0, 1.8)),
    "hue": (color.adjust_hue, F.adjust_hue, (-0.5, -0.2, -0.03, 0.0, 0.1, 0.2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_color_operations_are_torchvisions_on_floats(patches, name):
    """Within 0.03 level of torchvision on float tensors, which does not round (its luma weighs red 0.2989, PIL's 0.299)."""
    ours, theirs, factors = OPERATIONS[name]
    for image in patches:
        for factor in factors:
            planes = planes_of(image)
            wanted = theirs(torch.from_numpy(planes / 255), factor).numpy() * 255
            ours(planes, factor, PROGRAM)
            assert np.abs(planes - wanted).max() < 0.03, (factor, np.abs(planes - wanted).max())


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_operations_are_pils(patches, name):
    """Within 2 levels of torchvision on PIL images, which rounds to whole levels on the way. (Hue is not compared: PIL's
    HSV has 256 hues, which alone costs several levels.)"""
    ours, theirs, factors = OPERATIONS[name]
    for image in patches:
        for factor in factors:
            planes = planes_of(image)
            ours(planes, factor, PROGRAM)
            wanted = np.asarray(theirs(Image.fromarray(image), factor)).astype(int)
            assert np.abs(levels(planes) - wanted).max() <= 2


def test_grayscale_is_pils(patches):
    for image in patches:
        planes = planes_of(image)
        color.adjust_saturation(planes, 0.0, PROGRAM)
        assert np.abs(levels(planes) - np.asarray(F.to_grayscale(Image.fromarray(image), 3)).astype(int)).max() <= 1


def test_jitter_runs_in_the_order_drawn(patches):
    functions = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for order, gray in itertools.product(([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]), (False, True)):
        planes, factors = planes_of(patches[0]), (1.6, 0.5, 1.7, 0.15)
        wanted = torch.from_numpy(planes / 255)
        for k in order:
            wanted = functions[k](wanted, factors[k])
        if gray:
            wanted = F.rgb_to_grayscale(wanted, 3)
        color.jitter(planes, np.array(order, np.int32), *factors, gray, PROGRAM)
        assert np.abs(planes - wanted.numpy() * 255).max() < 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.33, 0.8, 1.5, 2.0, 5.0])
def test_blur_is_a_gaussian(patches, sigma):
    """Within 0.5 level of SciPy's Gaussian with repeated edges; ours is cut at 3 sigma."""
    for image in patches[:3]:
        planes = planes_of(image)
        wanted = gaussian_filter(planes.astype(np.float64), (0, sigma, sigma), mode="nearest", truncate=6)
        blur.gaussian_blur(planes, sigma, np.empty(blur.blur_scratch_size(SIZE), np.float32))
        assert np.abs(planes - wanted).max() < 0.5


def test_blur_of_a_small_image_reaches_over_both_edges():
    planes = np.random.default_rng(0).uniform(0, 255, (3, 9, 9)).astype(np.float32)
    wanted = gaussian_filter(planes.astype(np.float64), (0, 3.5, 3.5), mode="nearest", truncate=6)
    blur.gaussian_blur(planes, 3.5, np.empty(blur.blur_scratch_size(9), np.float32))
    assert np.abs(planes - wanted).max() < 1


@pytest.mark.parametrize("which", range(15), ids=randaugment.OPERATIONS)
def test_randaugment_operations_are_timms(patches, which):
    """Within 1 level of timm's operations on PIL images, but for the few pixels where rounding decides inside or outside
    of a rotated or sheared image (at most 1 %)."""
    name = randaugment.OPERATIONS[which]
    to_argument = timm_aa.LEVEL_TO_ARG[name]
    for image in patches:
        for level in (1, 4, 9):
            hparams = {"translate_const": 50}
            ours = randaugment.argument(which, level, 1.0)
            theirs = to_argument(level, hparams) if to_argument else ()
            if theirs:
                assert abs(ours) == pytest.approx(abs(theirs[0]), rel=1e-6), name
                theirs = (abs(theirs[0]),)
            wanted = timm_aa.NAME_TO_OP[name](
                Image.fromarray(image), *theirs, fillcolor=(124, 116, 104), resample=Image.BILINEAR
            )
            planes = planes_of(image)
            randaugment.apply_operation(planes, which, ours, np.empty(SIZE * SIZE, np.float32))
            error = np.abs(levels(planes) - np.asarray(wanted).astype(int)).max(axis=2)
            assert (error > 1).mean() <= (
                0.01 if which in (randaugment.ROTATE, randaugment.SHEAR_X, randaugment.SHEAR_Y) else 0
            ), (level, error.max())
