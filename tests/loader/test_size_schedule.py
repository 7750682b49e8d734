"""Crops whose size changes from epoch to epoch: the batches of a loader of that size; resumed, in parts, spread."""

import numpy as np
import pytest
import torch
from helpers import digest

from idmm_fast.loader import MultiCropLoader, Views
from idmm_fast.loader.gpu import DeviceLoader

VIEWS = [Views(2, 24, (0.3, 1.0)), Views(1, 16)]
SCHEDULE = {1: (32, 16), 3: (16, 8)}
SIZES = [(24, 16), (32, 16), (32, 16), (16, 8), (16, 8)]  # of each epoch


def make(path, kind=MultiCropLoader, **options):
    options = {"batch_size": 12, "num_workers": 1, "seed": 3, "views": VIEWS, "schedule": SCHEDULE} | options
    return kind(path, **options)


def of_size(path, epoch, **options):
    """A loader of the sizes of an epoch alone, at that epoch."""
    views = [Views(v.count, size, v.scale) for v, size in zip(VIEWS, SIZES[epoch])]
    loader = make(path, views=views, schedule=None, **options)
    loader.set_epoch(epoch)
    return loader


@pytest.mark.parametrize("beton", ["jpg_beton", "raw_beton"])
@pytest.mark.parametrize("options", [{}, {"cutmix_per_row": True}, {"cutmix_chunk": 2, "num_workers": 2}])
def test_an_epoch_has_the_batches_of_a_loader_of_its_size(request, beton, options):
    """40 images in batches of 12, the last of 4; the first batches of an epoch are made in the one before."""
    path = request.getfixturevalue(beton)
    loader = make(path, **options)
    for epoch, sizes in enumerate(SIZES):
        batches = list(loader)
        assert [group.images.shape[-1] for group in batches[0]] == list(sizes)
        assert digest(batches) == digest(of_size(path, epoch, **options))


def test_a_change_goes_with_resume_and_with_processes(raw_beton):
    expected = [[digest([batch]) for batch in loader] for loader in [make(raw_beton)] * len(SIZES)]
    for epoch, step in ((0, 3), (1, 0), (2, 2), (3, 1)):
        fresh = make(raw_beton, num_workers=2)
        fresh.load_state_dict({"epoch": epoch, "step": step})
        assert [digest([batch]) for batch in fresh] == expected[epoch][step:]
        assert [digest([batch]) for batch in fresh] == expected[epoch + 1]
    options = {"cutmix_chunk": 2}
    whole = make(raw_beton, **options)
    parts = [make(raw_beton, batch_size=6, rank=rank, world_size=2, **options) for rank in range(2)]
    for _ in range(2):
        for batch, *shares in zip(whole, *parts, strict=True):
            assert torch.equal(batch[1].images, torch.cat([share[1].images for share in shares]))


def test_with_spread_a_change_waits_for_the_next_round(raw_beton):
    """In one block and in the order of the file, batches are those without spread."""
    options = {"shuffle": False, "spread": 2}
    spread, wanted = make(raw_beton, **options), make(raw_beton, shuffle=False, schedule={2: (32, 16), 4: (16, 8)})
    for _ in range(6):
        batches = list(spread)
        assert digest(batches) == digest(wanted)
    resumed = make(raw_beton, **options)
    resumed.load_state_dict({"epoch": 5, "step": 0})
    assert digest(resumed) == digest(batches)


def test_a_change_of_spread_crops_is_held_in_the_memory_of_the_largest(raw_beton):
    """Any number of threads, and blocks that are made ahead while the sizes change."""
    options = {"spread": 2, "batch_size": 2, "spread_mb": 1, "views": [Views(1, 80)], "schedule": {2: [32], 4: [48]}}
    one, two = (make(raw_beton, num_workers=workers, **options) for workers in (1, 2))
    assert len(one.traversal_order.lengths) == 4
    assert one.largest == 80
    assert 2 * one.decoder._size <= 1 << 20  # of two blocks
    for epoch in range(6):
        batches = list(one)
        assert {batch[0].images.shape[-1] for batch in batches} == {(80, 32, 48)[epoch // 2]}
        assert digest(batches) == digest(two)


def test_a_device_makes_the_batches_of_its_size_too(raw_beton):
    loader = make(raw_beton, DeviceLoader, device="cpu")
    for epoch in (0, 1, 3):
        loader.set_epoch(epoch)
        assert digest(loader) == digest(of_size(raw_beton, epoch, kind=DeviceLoader, device="cpu"))


def test_a_schedule_that_does_not_fit_is_refused(raw_beton):
    with pytest.raises(ValueError, match=r"a size for each of the 2 groups, .* not \[32\] from 1 on"):
        make(raw_beton, schedule={1: [32]})
    with pytest.raises(ValueError, match=r"from an epoch of at least 0 on; not \[32, 16\] from -1 on"):
        make(raw_beton, schedule={-1: (32, 16)})
    with pytest.raises(ValueError, match="a size of at least 8, not 2 and 4"):
        make(raw_beton, schedule={1: (4, 8)})
    assert np.array_equal(make(raw_beton, schedule={}).indices, np.arange(40))
