"""What is sampled has torchvision's distributions (Kolmogorov-Smirnov or chi-square, p > 0.001, 100,000 samples)."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from idmm_fast.kernels.randaugment import OPERATIONS
from idmm_fast.loader import Augment, Views
from idmm_fast.loader.crops import CutMixSpec, crop_table
from idmm_fast.loader.cutmix import sample_cutmix
from idmm_fast.loader.sampling import CROP_SAMPLE, sample_crop

N, H, W = 100_000, 375, 500
P = 1e-3


def sample(augment=None, scale=(0.14, 1.0), n=N, height=H, width=W, seed=11):
    spec = crop_table([Views(1, 112, scale)], augment or Augment())[0]
    result = np.zeros(n, CROP_SAMPLE)
    for row in range(n):
        sample_crop(np.uint64(seed), 0, row, 0, height, width, spec, result[row])
    return result


@pytest.fixture(scope="module")
def samples():
    return sample()


def torchvision_boxes(uniforms, height, width, scale):
    """RandomResizedCrop.get_params for many crops at once, int (n, 4): top, left, height, width.

    uniforms: float32 (n, 10, 4) in [0, 1): area, ratio, top and left of each of the ten attempts.
    """
    low, high = np.log(np.float32([3 / 4, 4 / 3]))
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[..., 0]).astype(np.float64)
    ratio = np.exp(low + (high - low) * uniforms[..., 1]).astype(np.float64)
    w, h = np.round(np.sqrt(area * ratio)).astype(int), np.round(np.sqrt(area / ratio)).astype(int)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    at = np.arange(len(uniforms)), fits.argmax(1)  # the first attempt that fits
    w, h = w[at], h[at]
    top, left = (uniforms[at][:, 2] * (height - h + 1)).astype(int), (uniforms[at][:, 3] * (width - w + 1)).astype(int)
    boxes = np.stack([top, left, h, w], 1)
    if not fits.any(1).all():  # then the largest central crop of the nearest ratio
        h, w = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
        boxes[~fits.any(1)] = (height - h) // 2, (width - w) // 2, h, w
    return boxes


class GivenNumbers:
    """Stands in for torch's random numbers in get_params, whose every attempt takes two, and two more if it fits."""

    def uniform_(self, low, high):
        attempt, place = divmod(self.used, 2)
        self.used += 1
        return low + (high - low) * self.attempts[attempt, place]

    def randint(self, low, high, size):
        attempt, place = divmod(
            self.used - 2, 2
        )  # the first of the two is asked for at an even count, then at an odd one
        self.used += 1
        return (self.attempts[attempt, 2 + place] * (high - low)).long()


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(375, 500, (0.14, 1.0)), (375, 500, (0.05, 0.4)), (60, 500, (0.3, 1.0))]
)
def test_crop_boxes_have_torchvisions_distribution(height, width, scale, monkeypatch):
    """torchvision_boxes is get_params, box by box, on the same random numbers; then 100,000 of its boxes against ours.

    get_params itself takes 10 s for 100,000. The last case is so wide that most crops come from the fallback.
    """
    uniforms = np.random.default_rng(0).random((N, 10, 4), np.float32)
    theirs = torchvision_boxes(uniforms, height, width, scale)
    image, given = torch.empty(3, height, width), GivenNumbers()
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda _, low, high: given.uniform_(low, high))
    monkeypatch.setattr(torch, "randint", given.randint)
    for attempts, box in zip(torch.from_numpy(uniforms[:1000]), theirs):
        given.attempts, given.used = attempts, 0
        assert RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) == tuple(box)
    monkeypatch.undo()
    ours = sample(scale=scale, height=height, width=width)
    for k, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(ours[name], theirs[:, k]).pvalue > P, name
    assert (ours["top"] >= 0).all()
    assert (ours["top"] + ours["height"] <= height).all()
    assert (ours["left"] + ours["width"] <= width).all()


def test_switches_fire_with_their_probabilities(samples):
    for name, p in (("flip", 0.5), ("jitter", 0.8), ("gray", 0.2)):
        assert stats.binomtest(int(samples[name].sum()), N, p).pvalue > P, name
    assert stats.binomtest(int((samples["sigma"] > 0).sum()), N, 0.5).pvalue > P


def test_factors_are_uniform_in_their_ranges(samples):
    for name in ("brightness", "contrast", "saturation"):
        assert stats.kstest(samples[name], stats.uniform(0.2, 1.6).cdf).pvalue > P, name
    assert stats.kstest(samples["hue"], stats.uniform(-0.2, 0.4).cdf).pvalue > P
    sigma = samples["sigma"][samples["sigma"] > 0]
    assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > P


def test_all_24_orders_of_the_colour_operations_are_equally_likely(samples):
    codes = samples["order"] @ np.array([64, 16, 4, 1])
    counts = np.unique(codes, return_counts=True)[1]
    assert counts.size == 24
    assert stats.chisquare(counts).pvalue > P
    assert (np.sort(samples["order"], axis=1) == np.arange(4)).all()


def test_randaugment_samples_operations_levels_and_signs_uniformly():
    """Operations, levels and signs uniform, the two of a crop independent; each fires half the time.

    A cutout's centre anywhere.
    """
    samples = sample(Augment(randaugment=2))
    operation, argument = samples["operation"], samples["argument"]
    fired = operation >= 0
    for k in range(2):
        assert stats.binomtest(int(fired[:, k].sum()), N, 0.5).pvalue > P
        assert stats.chisquare(np.bincount(operation[fired[:, k], k], minlength=15)).pvalue > P
    both = fired.all(1)
    assert stats.binomtest(int(both.sum()), N, 0.25).pvalue > P
    assert stats.chisquare(np.bincount(operation[both] @ [15, 1], minlength=225)).pvalue > P
    levels = {  # the nine strengths, of both signs where there are two
        "Cutout": [2, 4, 7, 9, 11, 13, 16, 18, 20],
        "Solarize": [256 - 256 * k / 9 for k in range(1, 10)],
        "ShearX": [s * 0.3 * k / 9 for k in range(1, 10) for s in (1, -1)],
        "TranslateY": [s * 150 / 331 * k / 9 for k in range(1, 10) for s in (1, -1)],
        "Brightness": [1 + s * k / 10 for k in range(1, 10) for s in (1, -1)],
    }
    for name, values in levels.items():
        seen, counts = np.unique(np.round(argument[operation == OPERATIONS.index(name)], 6), return_counts=True)
        assert seen == pytest.approx(sorted(values), abs=1e-6), name
        assert stats.chisquare(counts).pvalue > P, name
    bits = argument[operation == OPERATIONS.index("Posterize")]
    assert stats.chisquare(np.bincount(bits.astype(int))[4:], bits.size * np.array([2, 2, 2, 2, 1]) / 9).pvalue > P
    cut = operation == OPERATIONS.index("Cutout")
    for name in ("cut_x", "cut_y"):
        assert stats.kstest(samples[name][cut], stats.uniform().cdf).pvalue > P, name


def test_rotations_are_counter_clockwise_before_the_flip():
    """The authors flip last: 0..30 degrees one way, and the other way in a crop that was flipped."""
    samples = sample(Augment(randaugment=2), n=20_000)
    turned = samples["operation"] == OPERATIONS.index("Rotate")
    ways = samples["argument"] * np.where(samples["flip"], -1, 1)[:, None]
    seen, counts = np.unique(np.round(ways[turned], 5), return_counts=True)
    assert seen == pytest.approx([30 * k / 9 for k in range(1, 10)], abs=1e-4)
    assert stats.chisquare(counts).pvalue > P


def test_switching_one_augmentation_off_leaves_the_others(samples):
    without = sample(Augment(grayscale_prob=0, blur_prob=0), n=500)
    for name in ("top", "left", "height", "width", "flip", "jitter", "brightness", "hue"):
        assert (without[name] == samples[name][:500]).all()
    assert not without["gray"].any()
    assert not without["sigma"].any()


def cutmix(seed, epoch, step, group, batch, count, first=0, **options):
    """sample_cutmix at 112 pixels and alpha 0.5; options: of CutMixSpec."""
    counter = (np.uint64(seed), epoch, step, group)
    return sample_cutmix(counter, batch, Views(count, 112), CutMixSpec(0.5, **options), first)


def test_cutmix_lam_and_box():
    """At 112 pixels and alpha 0.5: mean lam 0.869, median 0.895, none below 0.5, 2.2 % not mixed at all."""
    n = 100_000
    mixes = [cutmix(2, 0, step, 0, 1, 1) for step in range(n)]
    lams = np.concatenate([m.lam for m in mixes])
    boxes = np.concatenate([m.box for m in mixes])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (lams == 1 - area / 112**2).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= 112).all()
    assert lams.mean() == pytest.approx(0.869, abs=4 * lams.std() / math.sqrt(n))
    assert np.median(lams) == pytest.approx(0.895, abs=0.005)
    assert lams.min() > 0.5
    assert (lams == 1).mean() == pytest.approx(0.022, abs=0.005)
    assert stats.ks_2samp(lams, authors_lams(n)).pvalue > P


def authors_lams(n):
    """lam as the authors sample it, written out with numpy's generator."""
    rng = np.random.default_rng(0)
    lam = rng.beta(0.5, 0.5, n)
    side = (112 * np.sqrt(1 - np.maximum(lam, 1 - lam))).astype(int)
    x, y = rng.integers(0, 112, n), rng.integers(0, 112, n)
    w = np.clip(x + side // 2, 0, 112) - np.clip(x - side // 2, 0, 112)
    h = np.clip(y + side // 2, 0, 112) - np.clip(y - side // 2, 0, 112)
    return 1 - w * h / 112**2


def test_cutmix_with_a_box_for_each_row_has_the_same_distribution():
    mix = cutmix(2, 0, 0, 0, 50_000, 2, per_row=True)
    assert np.unique(mix.lam).size > 1000
    assert stats.ks_2samp(mix.lam, authors_lams(100_000)).pvalue > P


def test_cutmix_chunks_are_the_same_however_the_batch_is_split():
    whole = cutmix(2, 3, 5, 1, 24, 4, chunk=4)
    rows = np.arange(24 * 4).reshape(4, 24)
    assert len({tuple(b) for b in whole.box}) > 3
    for first in (0, 8, 16):
        part = cutmix(2, 3, 5, 1, 8, 4, chunk=4, first=first)
        mine = rows[:, first : first + 8].reshape(-1)
        assert (part.lam == whole.lam[mine]).all()
        assert (part.box == whole.box[mine]).all()
        assert (mine[part.partner] == whole.partner[mine]).all()
    chunks = rows.T.reshape(6, 16)  # four images of four crops each
    assert (np.sort(whole.partner[chunks], axis=1) == np.sort(chunks, axis=1)).all()


def test_cutmix_groups_and_steps_are_independent():
    a = np.array([cutmix(2, 0, s, 0, 8, 2).lam[0] for s in range(4000)])
    b = np.array([cutmix(2, 0, s, 1, 8, 4).lam[0] for s in range(4000)])
    assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(4000)
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 4.5 / math.sqrt(4000)


def test_cutmix_partner_is_a_uniform_permutation_that_may_keep_a_row():
    first = np.array([cutmix(4, 1, s, 0, 3, 2).partner for s in range(100_000)])
    assert (np.sort(first, axis=1) == np.arange(6)).all()
    for place in range(6):
        assert stats.chisquare(np.bincount(first[:, place], minlength=6)).pvalue > P
