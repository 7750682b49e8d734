"""Each field of Augment, and each that is added: it changes the pixels, and not what is sampled for the others."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from idmm_fast.loader import Augment, MultiCropLoader, Views
from idmm_fast.loader.sampling import CROP_SAMPLE

# Everything on: probabilities 1, what is off by default at its most.
ALL = Augment(
    **{f.name: 1.0 if f.name.endswith("_prob") else f.default or f.metadata["checker"].high for f in fields(Augment)}
)
OFF = {f.name: (0.0, 0.0) if isinstance(f.default, tuple) else 0 for f in fields(Augment)}
# The sampled values that a field of Augment decides on; a flip turns RandAugment's rotation round.
OWN = {
    "flip_prob": {"flip", "argument"},
    "jitter_prob": {"jitter"},
    "brightness": {"brightness"},
    "contrast": {"contrast"},
    "saturation": {"saturation"},
    "hue": {"hue"},
    "grayscale_prob": {"gray"},
    "blur_prob": {"sigma"},
    "blur_sigma": {"sigma"},
    "randaugment": {"operation", "argument", "cut_x", "cut_y"},
}
OF_OLD = {"top", "left", "height", "width", "order"}.union(*OWN.values())


def first_batch(path, augment):
    """(pixels, what was sampled) of the first batch."""
    loader = MultiCropLoader(path, 16, 1, 7, 0, [Views(2, 32)], augment, shuffle=False)
    ((group,), *_) = loader
    return group.images, loader.decoder.sample_crops(0, range(16))


@pytest.mark.parametrize("name", OFF)
def test_a_field_changes_the_pixels_and_no_sample_of_another(jpg_beton, name):
    # Grayscale hides a change of the hue, so it is off in all but its own case.
    base = ALL if name == "grayscale_prob" else replace(ALL, grayscale_prob=0)
    pixels, samples = first_batch(jpg_beton, base)
    other_pixels, others = first_batch(jpg_beton, replace(base, **{name: OFF[name]}))
    assert not torch.equal(pixels, other_pixels)
    changed = {key for key in CROP_SAMPLE.names if not np.array_equal(samples[key], others[key])}
    assert changed <= OWN.get(name, set(CROP_SAMPLE.names) - OF_OLD)
