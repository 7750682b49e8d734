"""From epoch to epoch: batches made ahead are those of a cold start, or thrown away; nothing waits, nothing leaks."""

import functools
import gc
import threading
import time
import warnings
import weakref

import pytest
from helpers import corrupt_row, digest
from hypothesis import given, settings
from hypothesis import strategies as st

from idmm_fast.loader import LoaderError, MultiCropLoader, Views, evaluation_loader

STEPS, AHEAD = 3, 2  # batches of an epoch of 40 images; batches ahead by default


def make(path, workers=1, **options):
    options = {"batch_size": 16, "seed": 3, "views": [Views(2, 24), Views(1, 16)]} | options
    return MultiCropLoader(path, num_workers=workers, **options)


@functools.cache
def cold(path, epoch, alpha=0.5):
    """The batches of an epoch, made by a loader that knows no other."""
    loader = make(path, cutmix_alpha=alpha, epochs=1)
    loader.set_epoch(epoch)
    return [digest([batch]) for batch in loader]


def record_made(loader):
    """The (epoch, step) of every batch that is begun from now on, and a function that waits until it is `count`."""
    made, decode = [], loader.decoder.decode_batch

    def decode_batch(rows, position):
        made.append((position.epoch, position.step))
        return decode(rows, position)

    def wait_for(count):
        end = time.monotonic() + 10
        while len(made) < count and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.05)  # for those that should not be made
        return made

    loader.decoder.decode_batch = decode_batch
    return made, wait_for


def epoch_threads():
    return {thread for thread in threading.enumerate() if thread.name == "idmm-epoch"}


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 2), (2, 1), (2, 5)])
def test_epochs_made_ahead_are_those_of_a_cold_start(raw_beton, workers, ahead):
    """All in one thread, and held to the end: no buffer is used twice."""
    loader, held, threads = make(raw_beton, workers, batches_ahead=ahead), [], set()
    for _ in range(4):
        held.append(list(loader))
        threads.add(loader._iterator)
    assert len(threads) == 1
    assert [[digest([batch]) for batch in batches] for batches in held] == [cold(raw_beton, e) for e in range(4)]
    assert len(loader.buffers._buffers) <= ahead + 2


def test_the_first_batches_of_the_next_epoch_are_made_before_they_are_asked_for(raw_beton):
    loader = make(raw_beton)
    _, wait_for = record_made(loader)
    list(loader)
    whole = [(0, step) for step in range(STEPS)]
    assert wait_for(STEPS + AHEAD + 1) == [*whole, (1, 0), (1, 1), (1, 2)]  # as many as in the middle of an epoch
    assert loader.state_dict() == {"epoch": 1, "step": 0}
    iterator = iter(loader)
    assert loader.state_dict() == {"epoch": 1, "step": 0}
    next(iterator)
    assert loader.state_dict() == {"epoch": 1, "step": 1}
    assert wait_for(STEPS + AHEAD + 2)[-1] == (2, 0)
    assert loader.state_dict() == {"epoch": 1, "step": 1}


def test_nothing_is_made_beyond_the_last_epoch(raw_beton):
    before, loader = epoch_threads(), make(raw_beton, epochs=2)
    _, wait_for = record_made(loader)
    batches = [[digest([batch]) for batch in loader] for _ in range(3)]  # one more than was said
    assert batches == [cold(raw_beton, epoch) for epoch in range(3)]
    assert wait_for(3 * STEPS) == [(epoch, step) for epoch in range(3) for step in range(STEPS)]
    loader = evaluation_loader(raw_beton, 16, 16, 1)
    _, wait_for = record_made(loader)
    for _ in range(2):
        list(loader)
    assert wait_for(2 * STEPS) == [(epoch, step) for epoch in range(2) for step in range(STEPS)]
    assert epoch_threads() <= before


def test_epochs_without_a_batch_end(raw_beton):
    loader = make(raw_beton, batch_size=41, drop_last=True)
    assert [list(loader) for _ in range(3)] == [[], [], []]
    assert loader.state_dict() == {"epoch": 3, "step": 0}


def test_mixing_that_alternates_from_epoch_to_epoch_keeps_what_was_made_ahead(raw_beton):
    loader = make(raw_beton, cutmix_alpha=lambda epoch: 0.5 if epoch % 2 else 0.0)
    _, wait_for = record_made(loader)
    found = [[digest([batch]) for batch in loader] for _ in range(4)]
    assert found == [cold(raw_beton, epoch, 0.5 if epoch % 2 else 0.0) for epoch in range(4)]
    made = wait_for(4 * STEPS + AHEAD + 1)
    assert len(made) == len(set(made)) == 4 * STEPS + AHEAD + 1  # none twice
    with pytest.raises(ValueError, match="without mixing"):
        make(raw_beton, cutmix_alpha=lambda epoch: 0.0, on_error="skip", views=[Views(1, 16)])
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(LoaderError, match="cutmix_alpha is 0"):
            list(make(raw_beton, cutmix_alpha=lambda epoch, alpha=wrong: alpha))


def test_positions_that_there_are_not_are_refused(raw_beton):
    loader = make(raw_beton)
    with pytest.raises(ValueError, match="no step 0 of epoch -1"):
        loader.set_epoch(-1)
    with pytest.raises(ValueError, match="no step -2 of epoch 0"):
        loader.load_state_dict({"epoch": 0, "step": -2})
    assert loader.state_dict() == {"epoch": 0, "step": 0}


ACTIONS = st.one_of(
    st.tuples(st.just("whole")),
    st.tuples(st.just("whole")),
    st.tuples(st.just("part"), st.integers(0, STEPS - 1)),
    st.tuples(st.just("set_epoch"), st.integers(0, 3)),
    st.tuples(st.just("alpha"), st.sampled_from([0.0, 0.5, 1.0])),
    st.tuples(st.just("load"), st.integers(0, 3), st.integers(0, STEPS)),
    st.tuples(st.just("close")),
)


@given(st.lists(ACTIONS, min_size=2, max_size=8), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_is_set_between_epochs_the_batches_are_those_of_a_cold_start(raw_beton, actions, ahead):
    loader, alpha, at = make(raw_beton, 2, batches_ahead=ahead), 0.5, (0, 0)
    for name, *values in actions:
        if name == "set_epoch":
            loader.set_epoch(*values)
            at = values[0], 0
        elif name == "alpha":
            loader.cutmix_alpha = alpha = values[0]
        elif name == "load":
            loader.load_state_dict(dict(zip(("epoch", "step"), values)))
            at = tuple(values)
        elif name == "close":
            loader.close()
        else:
            count = values[0] if values else None
            handle = iter(loader)
            found = (
                [digest([next(handle)]) for _ in range(min(count, STEPS - at[1]))]
                if values
                else [digest([batch]) for batch in handle]
            )
            assert found == cold(raw_beton, at[0], alpha)[at[1] :][:count]
            at = at[0] + 1, 0
            del handle
    loader.close()


def test_mixing_set_within_an_epoch_holds_from_the_next_one(raw_beton):
    loader, found = make(raw_beton), []
    for batch in loader:
        loader.cutmix_alpha = 0.0
        found.append(digest([batch]))
    assert found == cold(raw_beton, 0)
    assert [digest([batch]) for batch in loader] == cold(raw_beton, 1, 0.0)


def test_the_epoch_that_comes_anyway_may_be_set_without_a_cold_start(raw_beton):
    loader = make(raw_beton)
    list(loader)
    thread = loader._iterator
    loader.set_epoch(1)
    assert [digest([batch]) for batch in loader] == cold(raw_beton, 1)
    assert loader._iterator is thread
    loader.set_epoch(1)
    assert [digest([batch]) for batch in loader] == cold(raw_beton, 1)
    assert loader._iterator is not thread
    assert not thread.is_alive()


def test_leaving_a_later_epoch_early_leaves_no_thread(raw_beton):
    before, loader = epoch_threads(), make(raw_beton)
    for epoch in range(3):
        for _batch in loader:
            if epoch == 2:
                break
    gc.collect()
    assert epoch_threads() <= before


def test_a_dropped_loader_ends_the_thread_that_went_on(raw_beton):
    """Without the garbage collector."""
    gc.collect()
    before, loader = threading.active_count(), make(raw_beton, 2)
    list(loader)
    gone = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert gone() is None
        until = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert threading.active_count() <= before
    finally:
        gc.enable()


def test_an_error_in_a_batch_made_ahead_reaches_who_asks_for_it(raw_beton):
    loader = make(raw_beton)
    decode = loader.decoder.decode_batch
    loader.decoder.decode_batch = lambda rows, position: (
        1 / 0 if (position.epoch, position.step) == (1, 1) else decode(rows, position)
    )
    assert [digest([batch]) for batch in loader] == cold(raw_beton, 0)
    iterator = iter(loader)
    assert digest([next(iterator)]) == cold(raw_beton, 1)[0]
    with pytest.raises(LoaderError, match="ZeroDivisionError"):
        next(iterator)
    assert next(iterator, None) is None
    loader.set_epoch(0)
    assert [digest([batch]) for batch in loader] == cold(raw_beton, 0)
    loader.set_epoch(2)  # nobody asks for epoch 1
    assert [digest([batch]) for batch in loader] == cold(raw_beton, 2)


def test_images_are_counted_as_replaced_when_their_batch_is_handed_out(jpg_beton, tmp_path):
    """Not when it is made: row 17 is in the first batch of the epoch after the one that is consumed."""
    loader = make(corrupt_row(jpg_beton, tmp_path / "bad.beton", 17, "half"), on_error="replace", cutmix_alpha=0.0)
    order = loader.traversal_order.sample_order
    epoch = next(e for e in range(1000) if 17 in order(e + 1)[:16] and 17 not in order(e)[32:])
    loader.load_state_dict({"epoch": epoch, "step": 2})
    _, wait_for = record_made(loader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(loader)) == 1
        wait_for(1 + AHEAD + 1)
        assert loader.replaced == {}
        assert not caught
        iterator = iter(loader)
        next(iterator)
        assert [(row, other) for row, (other, _) in loader.replaced.items()] == [(17, 18)]
        assert len(caught) == 1
        list(loader)
    assert len(loader.replaced) == len(caught) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_damaged_image_of_a_batch_is_named(jpg_beton, tmp_path, workers):
    path = jpg_beton
    for row in (31, 5, 9):
        path = corrupt_row(path, tmp_path / f"{row}.beton", row, "half")
    for _ in range(5):
        with pytest.raises(LoaderError, match="row 5 of"):
            list(make(path, workers, batch_size=40, shuffle=False))


def test_a_batch_begins_while_a_slow_thread_still_works_on_the_one_before(raw_beton, monkeypatch):
    monkeypatch.setattr("idmm_fast.limits.cores", lambda: 2)
    loader, next_one_began, waited = make(raw_beton, 2), threading.Event(), []
    render = loader.decoder._render

    def slow_render(rows, position, layout, first, last):
        if position.step == 1:
            next_one_began.set()
        elif (position.step, last) == (0, len(rows)):
            waited.append(next_one_began.wait(20))
        render(rows, position, layout, first, last)

    loader.decoder._render = slow_render
    assert digest([next(iter(loader))]) == cold(raw_beton, 0)[0]
    assert waited == [True]


def test_a_consumer_in_another_thread_is_not_left_waiting(raw_beton):
    loader = make(raw_beton)
    began, go_on, decode = threading.Event(), threading.Event(), loader.decoder.decode_batch

    def decode_batch(*args):
        began.set()
        go_on.wait(20)
        return decode(*args)

    loader.decoder.decode_batch = decode_batch
    found = []
    consumer = threading.Thread(target=lambda: found.extend(loader))
    consumer.start()
    assert began.wait(20)
    while loader._iterator is None:  # its thread works before the consumer has it
        time.sleep(0.01)
    threading.Timer(0.05, go_on.set).start()
    loader.close()
    consumer.join(20)
    assert not consumer.is_alive()
    assert len(found) <= 1


def test_bad_numbers_of_epochs_are_refused(raw_beton):
    with pytest.raises(ValueError, match="epochs is at least 1"):
        make(raw_beton, epochs=0)


def test_time_that_a_consumer_waits_is_counted(raw_beton):
    loader, began = make(raw_beton), time.perf_counter()
    list(loader)
    elapsed, waited = time.perf_counter() - began, loader.waited
    assert 0 < waited < elapsed
    list(loader)
    assert loader.waited > waited
