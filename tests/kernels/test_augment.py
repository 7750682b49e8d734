"""Each augmentation against PIL, torchvision or SciPy on the same parameters. Tolerances are in levels of 0..255."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from idmm_fast.config.finetune import AUGMENT
from idmm_fast.kernels import blur, color, randaugment, resize
from idmm_fast.kernels.resize import taps, weights
from idmm_fast.loader import MultiCropLoader, Views

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
    """On PIL images, within 1 level at every pixel (PIL also rounds between its passes and at the end)."""
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
    """Within 0.03 level of torchvision on float tensors, which does not round (its luma has 0.2989, PIL's 0.299)."""
    ours, theirs, factors = OPERATIONS[name]
    for image in patches:
        for factor in factors:
            planes = planes_of(image)
            wanted = theirs(torch.from_numpy(planes / 255), factor).numpy() * 255
            ours(planes, factor, PROGRAM)
            assert np.abs(planes - wanted).max() < 0.03, (factor, np.abs(planes - wanted).max())


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_operations_are_pils(patches, name):
    """Within 2 levels of torchvision on PIL images, which rounds to whole levels on the way.

    (Hue is not compared: PIL's HSV has 256 hues, which alone costs several levels.)
    """
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


def rotated(image, angle):
    turned = image.convert("RGBA").rotate(angle)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")


def cut_out(image, size, x, y):
    image, half = image.copy(), size // 2
    box = max(0, x - half), max(0, y - half), min(SIZE, x + half) - 1, min(SIZE, y + half) - 1
    ImageDraw.Draw(image).rectangle(box, (125, 122, 113))
    return image


def affine(image, matrix, resample):
    return image.transform(image.size, Image.AFFINE, matrix, resample, fillcolor=(128, 128, 128))


GRID = {  # the strengths of the released code, for the levels 0..9
    "factor": np.linspace(0, 0.9, 10),
    "shear": np.linspace(0, 0.3, 10),
    "translate": np.linspace(0, 150 / 331, 10),
    "rotate": np.linspace(0, 30, 10),
    "posterize": np.round(np.linspace(8, 4, 10)).astype(int),
    "solarize": np.linspace(256, 0, 10),
    "cutout": np.round(np.linspace(0, 20, 10)).astype(int),
}
AUTHORS = {  # image, level, sign, centre of the cutout: what the released code does with PIL
    "Invert": lambda i, k, s, at: ImageOps.invert(i),
    "Cutout": lambda i, k, s, at: cut_out(i, GRID["cutout"][k], *at),
    "Sharpness": lambda i, k, s, at: ImageEnhance.Sharpness(i).enhance(1 + s * GRID["factor"][k]),
    "AutoContrast": lambda i, k, s, at: ImageOps.autocontrast(i),
    "Posterize": lambda i, k, s, at: ImageOps.posterize(i, int(GRID["posterize"][k])),
    "ShearX": lambda i, k, s, at: affine(i, (1, s * GRID["shear"][k], 0, 0, 1, 0), Image.BICUBIC),
    "TranslateX": lambda i, k, s, at: affine(i, (1, 0, s * GRID["translate"][k] * SIZE, 0, 1, 0), Image.NEAREST),
    "TranslateY": lambda i, k, s, at: affine(i, (1, 0, 0, 0, 1, s * GRID["translate"][k] * SIZE), Image.NEAREST),
    "ShearY": lambda i, k, s, at: affine(i, (1, 0, 0, s * GRID["shear"][k], 1, 0), Image.BICUBIC),
    "Rotate": lambda i, k, s, at: rotated(i, s * GRID["rotate"][k]),
    "Equalize": lambda i, k, s, at: ImageOps.equalize(i),
    "Contrast": lambda i, k, s, at: ImageEnhance.Contrast(i).enhance(1 + s * GRID["factor"][k]),
    "Color": lambda i, k, s, at: ImageEnhance.Color(i).enhance(1 + s * GRID["factor"][k]),
    "Solarize": lambda i, k, s, at: ImageOps.solarize(i, GRID["solarize"][k]),
    "Brightness": lambda i, k, s, at: ImageEnhance.Brightness(i).enhance(1 + s * GRID["factor"][k]),
}


def augmented(image, which, level, sign, at=(50, 60), flipped=False):
    planes, scratch = planes_of(image), np.empty(image.shape[0] ** 2, np.float32)
    x, y = ((c + 0.5) / image.shape[0] for c in at)
    randaugment.apply_operation(planes, which, randaugment.level_to_arg(which, level, sign), x, y, flipped, scratch)
    return levels(planes)


@pytest.mark.parametrize("name", AUTHORS)
def test_randaugment_operations_are_the_authors(patches, name):
    """PIL's pixels at every level, exactly.

    Within one level where PIL truncates what we round, and, in one of 1,000 values, where it truncates what was
    multiplied and added with one more rounding than ours.
    """
    which = randaugment.OPERATIONS.index(name)
    share = (
        1
        if name in ("Sharpness", "Contrast", "Color", "Brightness")
        else 1e-3
        if name in ("AutoContrast", "ShearX", "ShearY")
        else 0
    )
    centres = [(0, 0), (50, 60), (111, 3)] if name == "Cutout" else [(50, 60)]
    for image, level, sign, at in itertools.product(patches[::2], range(1, 10), (1.0, -1.0), centres):
        wanted = np.asarray(AUTHORS[name](Image.fromarray(image), level, sign, at)).astype(int)
        error = np.abs(augmented(image, which, level, sign, at) - wanted)
        assert error.max() <= 1, (level, sign)
        assert (error > 0).mean() <= share, (level, sign)


def test_the_shear_of_a_flipped_crop_is_the_authors_who_flip_last(patches):
    """ShearY leaves the left edge in place, before the flip."""
    which = randaugment.OPERATIONS.index("ShearY")
    for image, level, sign in itertools.product(patches[::2], range(1, 10), (1.0, -1.0)):
        wanted = np.asarray(AUTHORS["ShearY"](Image.fromarray(image), level, sign, None))[:, ::-1].astype(int)
        error = np.abs(augmented(image[:, ::-1], which, level, -sign, flipped=True) - wanted)
        assert error.max() <= 1, (level, sign)
        assert (error > 0).mean() <= 1e-3, (level, sign)


def test_no_operation_leaves_an_image_of_one_colour(patches):
    for which, level, sign in itertools.product(range(15), range(1, 10), (1.0, -1.0)):
        assert augmented(patches[0], which, level, sign).std() > 4, (randaugment.OPERATIONS[which], level, sign)


def test_fine_tuning_hands_out_no_black_image(jpg_beton):
    """None of 4,000 crops is of one colour but where the crop was.

    (Two operations that both darken or flatten by nine tenths may make one, less than once in 100,000.)
    """
    views = [Views(10, 32, (0.5, 1.0), interpolation="bicubic")]
    loaders = [
        MultiCropLoader(jpg_beton, 40, 2, 3, 0, views, a, shuffle=False)
        for a in (AUGMENT, replace(AUGMENT, randaugment=0))
    ]
    spreads = []
    for loader in loaders:
        groups = [group.images.flatten(1) for _ in range(10) for (group,) in loader]
        spreads.append(torch.cat([(x.amax(1) - x.amin(1)).int() for x in groups]))
    assert len(spreads[0]) == 4000
    assert (spreads[1] > 30).float().mean() > 0.9
    assert not ((spreads[0] < 2) & (spreads[1] > 30)).any()
