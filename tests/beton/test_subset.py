"""Subsets of an FFCV dataset: the same images, class-balanced or random."""

import numpy as np
import pytest
from helpers import corrupt_row

from idmm_fast.beton import BetonError, open_beton
from idmm_fast.beton.subset import sample_rows, write_subset
from idmm_fast.loader import Augment, MultiCropLoader, Views


@pytest.mark.parametrize("kind", ["jpg", "raw"])
def test_a_subset_has_the_same_images(kind, jpg_beton, raw_beton, tmp_path):
    path = {"jpg": jpg_beton, "raw": raw_beton}[kind]
    rows = np.array([3, 5, 8, 30])
    written = write_subset(path, rows, tmp_path / "some.beton")
    some, whole = open_beton(tmp_path / "some.beton"), open_beton(path)
    assert written.count == 4
    assert some.classes == whole.classes
    places = np.array(written.places)
    assert np.array_equal(some.label, whole.label[rows[places]])
    pixels = [
        next(iter(MultiCropLoader(p, 4, 1, 0, 0.0, [Views(1, 48, resize=48)], Augment.none(), shuffle=False, rows=r)))[
            0
        ].images
        for p, r in ((path, rows[places]), (tmp_path / "some.beton", None))
    ]
    assert np.array_equal(*(x.numpy() for x in pixels))


def test_rows_of_a_subset_are_a_choice_of_rows(raw_beton, tmp_path):
    mask = np.arange(len(open_beton(raw_beton))) < 3
    assert write_subset(raw_beton, mask, tmp_path / "some.beton").count == 3
    for wrong in ([-1], [10_000], []):
        with pytest.raises(ValueError, match="rows"):
            write_subset(raw_beton, wrong, tmp_path / "none.beton")
    assert not (tmp_path / "none.beton").exists()


def test_a_subset_of_an_altered_file_is_refused(raw_beton, tmp_path):
    path = corrupt_row(raw_beton, tmp_path / "altered.beton", 5, "noise")
    with pytest.raises(BetonError, match=r"row 5 of .* was altered"):
        write_subset(path, np.array([1, 5]), tmp_path / "some.beton")


def test_rows_are_balanced_or_random():
    labels = np.repeat(np.arange(4), [50, 30, 15, 5])
    assert np.bincount(labels[sample_rows(labels, 20, True, 0)]).tolist() == [5, 5, 5, 5]
    assert np.bincount(labels[sample_rows(labels, 47, True, 0)]).tolist() == [14, 14, 14, 5]
    counts = np.mean([np.bincount(labels[sample_rows(labels, 20, False, seed)], minlength=4) for seed in range(400)], 0)
    assert np.abs(counts - 20 * np.array([0.5, 0.3, 0.15, 0.05])).max() < 0.4  # about 4 standard errors
    assert not np.array_equal(sample_rows(labels, 20, True, 0), sample_rows(labels, 20, True, 1))
    with pytest.raises(ValueError, match="101 images"):
        sample_rows(labels, 101, True, 0)
