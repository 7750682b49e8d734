"""Crops spread over time: the pixels of a loader without spread, in an order of blocks; made once; any processes."""

import hashlib
import itertools
import threading
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import corrupt_row
from hypothesis import given, settings
from hypothesis import strategies as st

from idmm_fast.loader import LoaderError, MultiCropLoader, Views
from idmm_fast.loader.order import SpreadOrder

VIEWS = [Views(2, 24), Views(1, 16)]
PASSES = 3


def make(path, workers=1, **options):
    options = {"batch_size": 4, "seed": 3, "views": VIEWS, "spread": PASSES} | options
    return MultiCropLoader(path, num_workers=workers, **options)


def blocks_of(monkeypatch, batches):
    """Let blocks have at most so many batches, whatever the memory."""
    monkeypatch.setattr("idmm_fast.loader.spread.LEAST", 1)
    monkeypatch.setattr(
        "idmm_fast.loader.spread.SpreadOrder", lambda **values: SpreadOrder(**values | {"longest": batches})
    )


def digest(batch):
    result = hashlib.sha256()
    for g in batch:
        for t in (g.images.permute(0, 2, 3, 1), g.idx_a, g.idx_b, g.lam):
            result.update(t.numpy().tobytes())
    return result.hexdigest()


def epochs(loader, count):
    return [[digest(batch) for batch in loader] for _ in range(count)]


def crops(loader, count):
    """{(row, number of its crop): its pixels}, of so many epochs; the crops of a row in the order of their epochs."""
    seen, result = Counter(), {}
    for batch in itertools.chain.from_iterable(loader for _ in range(count)):
        (group,) = batch
        for row, pixels in zip(group.idx_a.tolist(), group.images):
            result[row, seen[row]] = pixels.clone()
            seen[row] += 1
    return result


@pytest.mark.parametrize("beton", ["jpg_beton", "raw_beton"])
@pytest.mark.parametrize("options", [{}, {"cutmix_chunk": 2, "cutmix_per_row": True}, {"cutmix_alpha": 0}])
def test_in_one_block_and_in_the_order_of_the_file_batches_are_those_without_spread(request, beton, options):
    """40 images in batches of 12: also the last batch, which belongs to no block."""
    path = request.getfixturevalue(beton)
    options |= {"shuffle": False, "batch_size": 12}
    spread, plain = make(path, **options), make(path, spread=1, **options)
    assert epochs(spread, PASSES + 2) == epochs(plain, PASSES + 2)


@pytest.mark.parametrize("batches", [10, 4, 3])
def test_the_crops_of_a_row_are_those_that_it_has_without_spread(jpg_beton, monkeypatch, batches):
    """In two rounds, one of one block, others of several, the order shuffled."""
    options = {"views": [Views(1, 24)], "cutmix_alpha": 0}
    expected = crops(make(jpg_beton, spread=1, **options), 2 * PASSES)
    blocks_of(monkeypatch, batches)
    found = crops(make(jpg_beton, **options), 2 * PASSES)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_an_image_is_decoded_once_a_round_and_its_crops_go_into_different_steps(jpg_beton, monkeypatch):
    blocks_of(monkeypatch, 4)
    loader, rendered = make(jpg_beton, epochs=2 * PASSES), Counter()
    make_crops = loader.decoder._make

    def count(block, images, first, last):
        rendered.update(block.rows[images[first:last]].tolist())
        make_crops(block, images, first, last)

    monkeypatch.setattr(loader.decoder, "_make", count)
    for batch in itertools.chain.from_iterable(loader for _ in range(2 * PASSES)):
        rows = batch[1].idx_a.tolist()
        assert len(set(rows)) == len(rows)
    assert rendered == dict.fromkeys(range(40), 2)  # and nothing of a third round


def test_a_pass_meets_other_images_in_its_batches(jpg_beton):
    loader = make(jpg_beton)
    company = [{frozenset(batch[1].idx_a.tolist()) for batch in loader} for _ in range(PASSES)]
    assert not company[0] & company[1]
    assert not company[1] & company[2]


@pytest.mark.parametrize("batches", [10, 3])
def test_batches_do_not_depend_on_workers_and_batches_ahead(jpg_beton, monkeypatch, batches):
    blocks_of(monkeypatch, batches)
    monkeypatch.setattr("idmm_fast.limits.cores", lambda: 3)
    expected = epochs(make(jpg_beton), 4)
    assert epochs(make(jpg_beton, workers=3, batches_ahead=5), 4) == expected
    held = [list(loader) for loader in [make(jpg_beton, workers=2)] * 4]  # no buffer is used twice
    assert [[digest(batch) for batch in batches] for batches in held] == expected


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.integers(0, 9), st.sampled_from([10, 4, 3]))
def test_a_resumed_loader_goes_on_with_the_same_batches(raw_beton, epoch, step, batches):
    with pytest.MonkeyPatch.context() as patch:
        blocks_of(patch, batches)
        expected = epochs(make(raw_beton, batch_size=4), 5)
        fresh = make(raw_beton, workers=2)
        fresh.load_state_dict({"epoch": epoch, "step": step})
        assert epochs(fresh, 5 - epoch) == [expected[epoch][step:], *expected[epoch + 1 :]]
        fresh.load_state_dict({"epoch": epoch, "step": step})  # and back, in blocks that are half made
        assert [digest(batch) for batch in fresh] == expected[epoch][step:]


@pytest.mark.parametrize("batches", [5, 2])
def test_processes_see_in_parts_what_one_sees_and_make_their_own_images_alone(raw_beton, monkeypatch, batches):
    """Global batches of 8 of 37 images, the last one of 5."""
    blocks_of(monkeypatch, batches)
    options = {"views": [Views(1, 16)], "cutmix_chunk": 2, "rows": np.arange(37)}
    one = make(raw_beton, batch_size=8, **options)
    ranks = [make(raw_beton, batch_size=4, rank=rank, world_size=2, **options) for rank in range(2)]
    made = set()
    for _ in range(PASSES + 1):
        for whole, *parts in zip(one, *ranks, strict=True):
            for name in ("images", "idx_a", "idx_b", "lam"):
                joined = torch.cat([getattr(part[0], name) for part in parts])
                assert torch.equal(joined, getattr(whole[0], name))
        made |= {tuple(b.rows.tolist()) for loader in ranks for b in loader.decoder._blocks.values()}
    assert {len(rows) for rows in made} == {4 * min(batches, 4)}


def test_epochs_hold_every_row_equally_often_over_a_round(raw_beton, monkeypatch):
    blocks_of(monkeypatch, 3)
    loader = make(raw_beton, rows=np.arange(39))
    rounds = []
    for _ in range(2):
        rows = [row for _ in range(PASSES) for batch in loader for row in batch[1].idx_a.tolist()]
        assert Counter(rows) == dict.fromkeys(range(39), PASSES)
        rounds.append(rows)
    assert rounds[0] != rounds[1]
    assert len(loader) == len(make(raw_beton, rows=np.arange(39), spread=1))


def test_a_batch_that_fails_is_reported_and_tried_again(jpg_beton, tmp_path, monkeypatch):
    blocks_of(monkeypatch, 3)
    loader = make(corrupt_row(jpg_beton, tmp_path / "bad.beton", 5, "noise"))
    for _ in range(2):
        loader.set_epoch(0)
        with pytest.raises(LoaderError, match=r"row 5 of .*bad\.beton can't be decoded"):
            epochs(loader, PASSES)


def test_a_replaced_image_is_counted_when_its_batch_is_handed_out(jpg_beton, tmp_path):
    path = corrupt_row(jpg_beton, tmp_path / "bad.beton", 5, "noise")
    options = {"shuffle": False, "on_error": "replace"}
    spread, plain = make(path, **options), make(path, spread=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        next(iter(spread))
        assert spread.replaced == {}
        assert epochs(spread, 2) == [epochs(plain, 2)[1], [digest(b) for b in plain]]
    assert spread.replaced.keys() == {5}


def test_leaving_an_epoch_early_leaves_no_thread(jpg_beton):
    loader = make(jpg_beton)
    for _ in loader:
        break
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "idmm-epoch"]
    assert [digest(batch) for batch in loader] == epochs(make(jpg_beton), 2)[1]


def test_memory_is_two_blocks(jpg_beton, monkeypatch):
    blocks_of(monkeypatch, 4)
    loader, sizes = make(jpg_beton), []
    for _ in range(2 * PASSES):
        for _ in loader:
            decoder = loader.decoder
            buffers = [b.position.buffer for b in decoder._blocks.values()] + decoder._free
            sizes.append(sum(buffer.size for buffer in buffers))
    # 10 batches of 4 in blocks of 4, 3 and 3; an image has 2 crops of 24 pixels and one of 16 in each pass
    options = {
        "views": [Views(1, 64)],
        "spread": 6,
        "spread_mb": 5,
        "cutmix_chunk": 2,
        "batch_size": 2,
        "world_size": 2,
    }
    held = make(jpg_beton, **options).decoder._size
    assert 0 < 2 * 2 * held <= 5 << 20  # two blocks, two processes
    assert max(sizes) == 2 * 4 * 4 * PASSES * 3 * (2 * 24 * 24 + 16 * 16)


def test_what_does_not_go_with_spread_is_refused(jpg_beton):
    with pytest.raises(ValueError, match="spread is at least 1"):
        make(jpg_beton, spread=0)
    with pytest.raises(ValueError, match="on_error='skip' does not go with spread"):
        make(jpg_beton, views=[Views(1, 16)], cutmix_alpha=0, on_error="skip")
    with pytest.raises(ValueError, match=r"holds the crops of 1 batches for 40 epochs, and 5 are needed: \d+ MB"):
        make(jpg_beton, views=[Views(1, 64)], spread=40, spread_mb=4)
    with pytest.raises(
        ValueError, match=r"the crops of 5 batches for 40 epochs, and 6 are needed: 23 MB"
    ):  # 6: 3 and 3
        make(jpg_beton, views=[Views(1, 64)], spread=40, spread_mb=22, rows=np.arange(24))


def test_fewer_images_than_a_batch_are_not_spread_and_that_is_said(jpg_beton):
    """Their crops are those of a loader without spread."""
    options = {"batch_size": 64, "views": [Views(1, 24)], "cutmix_alpha": 0}
    spread, plain = make(jpg_beton, **options), make(jpg_beton, spread=1, **options)
    assert (
        spread.decoder.description == "every epoch decodes all images: they are less than a batch, so nothing is spread"
    )
    found, wanted = crops(spread, 2), crops(plain, 2)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
