"""Decoded images that are kept: the same batches, one memory for all processes, nothing left behind."""

import gc
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT, corrupt_row, digest

from idmm_fast import limits
from idmm_fast.beton import open_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.kernels import atomic
from idmm_fast.kernels.jit import kernel
from idmm_fast.loader import LoaderError, MultiCropLoader, Views, evaluation_loader, open_cache
from idmm_fast.loader.cache import NEW, READY, cache_key

VIEWS = [Views(2, 48, (0.14, 1.0)), Views(1, 32, (0.05, 0.4))]


def make(path, workers=1, **kwargs):
    return MultiCropLoader(path, 16, workers, 7, views=VIEWS, **kwargs)


def files_in_shared_memory():
    """Those with this program's name: others make and remove theirs."""
    return {name for name in os.listdir("/dev/shm") if "idmm" in name}


@pytest.fixture
def beton(jpg_beton, tmp_path):
    """JPEGs whose memory nobody has yet."""
    return open_beton(shutil.copy(jpg_beton, tmp_path / "own.beton"))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_with_and_without_a_cache(beton, workers):
    cache = open_cache(beton)
    assert cache.description.startswith("JPEGs are decoded once, into ")
    kept, plain = make(beton.path, workers, cache=cache), make(beton.path)
    for _ in range(3):
        assert digest(kept) == digest(plain)
        assert (cache.state == READY).all()
    for row, image in enumerate(decode_rows(beton, None)):
        assert (cache.store[cache.slot[row] :][: image.size] == image.ravel()).all()
    assert cache.size == sum(image.size for image in decode_rows(beton, None))


def test_from_the_second_epoch_on_no_jpeg_is_read(beton):
    cache, plain = open_cache(beton), make(beton.path)
    digest(make(beton.path, cache=cache))
    kept = make(beton.path, cache=cache)  # a new one: the other one made batches of its next epoch already
    kept.set_epoch(1)
    plain.set_epoch(1)
    second = digest(plain)
    with open(beton.path, "r+b") as file:  # every JPEG is destroyed, in the file that is mapped
        for start, length in zip(beton.ptr, beton.length):
            file.seek(int(start))
            file.write(bytes(int(length)))
    assert digest(kept) == second
    with pytest.warns(UserWarning, match="not of .* as it is now, and is not used"):
        assert not make(beton.path, cache=cache).cache.store.size
    with pytest.raises(LoaderError, match="its bytes are not those that were written"):
        digest(make(beton.path))


def test_checksums_of_raw_pixels_are_looked_at_once(raw_beton, tmp_path):
    path = tmp_path / "raw.beton"
    shutil.copy(raw_beton, path)
    loader, beton = make(path), open_beton(path)
    digest(loader)
    assert not loader.cache.store.size
    assert open_cache(beton).description == ""
    with open(path, "r+b") as file:
        file.seek(int(beton.ptr[5]))
        file.write(b"\0\1\2\3\4\5")
    digest(loader)
    with pytest.raises(LoaderError, match="row 5 of"):
        digest(make(path))


def test_resume_in_mid_epoch_with_a_cache_that_is_full_or_empty(beton):
    loader = make(beton.path)
    iterator = iter(loader)
    next(iterator)
    state, rest = loader.state_dict(), digest(iterator)
    cache = open_cache(beton)
    for ready in (False, True):
        assert (cache.state == READY).all() == ready
        again = make(beton.path, cache=cache)
        again.load_state_dict(state)
        assert digest(again) == rest
        digest(again)


def test_a_loader_left_early_leaves_whole_rows_only(beton):
    cache = open_cache(beton)
    for _ in make(beton.path, 2, cache=cache):
        break
    gc.collect()
    for row, image in enumerate(decode_rows(beton, None)):
        assert cache.state[row] in (NEW, READY)
        assert cache.state[row] == NEW or (cache.store[cache.slot[row] :][: image.size] == image.ravel()).all()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("how", ["noise", "half"])
def test_a_damaged_image_fails_in_every_epoch_as_it_does_without_a_cache(jpg_beton, tmp_path, how, checked):
    path = corrupt_row(jpg_beton, tmp_path / "damaged.beton", 5, how)
    cache = open_cache(open_beton(path))
    with pytest.raises(LoaderError, match="row 5 of"):
        digest(make(path, cache=cache))
    kept, plain = (make(path, cache=own, on_error="replace", epochs=2) for own in (cache, None))
    if not checked:  # as in a file by FFCV's own writer: the decoder finds the damage
        for loader in (kept, plain):
            loader.decoder.beton = replace(loader.decoder.beton, sums=np.empty(0, np.uint64))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert digest(kept) == digest(plain)
        assert kept.replaced == plain.replaced
        assert np.flatnonzero(cache.state != READY).tolist() == [5]
        assert cache.state[5] == NEW


def test_loaders_of_one_file_share_its_memory(beton):
    first = open_cache(beton, rows=[1, 2, 3])
    digest(make(beton.path, rows=[1, 2, 3], cache=first))
    second = open_cache(open_beton(beton.path))
    assert second.description.endswith(" of memory that is there already")
    assert np.flatnonzero(second.state == READY).tolist() == [1, 2, 3]
    assert digest(evaluation_loader(beton.path, 8, 32, cache=second)) == digest(evaluation_loader(beton.path, 8, 32))
    assert (first.state == READY).all()


def test_caches_opened_at_the_same_time_are_one(beton):
    with ThreadPoolExecutor(8) as pool:
        caches = list(pool.map(lambda _: open_cache(beton), range(8)))
    assert sum("already" in cache.description for cache in caches) == 7
    caches[3].state[9] = READY
    assert all(cache.state[9] == READY for cache in caches)


_OTHER = """
import sys, time
from idmm_fast.beton import open_beton
from idmm_fast.loader import open_cache
from test_cache import digest, make
beton = open_beton(sys.argv[1])
print(digest(make(beton.path, cache=open_cache(beton))), flush=True)
time.sleep(100)
"""


@pytest.mark.integration
def test_two_processes_share_and_a_killed_one_leaves_nothing(beton):
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "loader")))
    before = files_in_shared_memory()
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, beton.path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as other:
        theirs = other.stdout.readline().strip()
        cache = open_cache(beton)
        assert cache.description.endswith("already")
        assert (cache.state == READY).all()
        loader = make(beton.path, cache=cache)
        assert theirs == digest(loader)
        other.kill()
    loader.set_epoch(0)
    assert theirs == digest(loader)  # its memory outlives it
    del loader, cache
    until = time.monotonic() + 10
    while links(beton) and time.monotonic() < until:  # its threads end
        gc.collect()
        time.sleep(0.05)
    assert not links(beton)
    assert open_cache(beton).description.endswith("MB of memory")
    assert files_in_shared_memory() <= before


def links(beton):
    """The descriptors of this process on the memory of a beton."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        if os.path.islink(f"/proc/self/fd/{number}"):
            found += [number] * (cache_key(beton) in os.readlink(f"/proc/self/fd/{number}"))
    return found


def test_memory_ends_with_the_loader(beton):
    loader = make(beton.path, cache=open_cache(beton))
    next(iter(loader))
    assert links(beton)
    del loader
    until = time.monotonic() + 10
    while links(beton) and time.monotonic() < until:  # its threads end
        gc.collect()
        time.sleep(0.05)
    assert not links(beton)


def test_pixels_that_do_not_fit_are_not_kept(beton, monkeypatch):
    needed = int((beton.height * beton.width * 3).sum())
    monkeypatch.setattr(limits, "memory_bytes", lambda: 8.0 * needed - 8)
    cache = open_cache(beton)
    assert cache.description == (
        "JPEGs are decoded in every epoch: their pixels take 3.58 MB, more than 3.58 MB (an eighth of memory; "
        "data.cache=auto)"
    )
    assert digest(make(beton.path, cache=cache)) == digest(make(beton.path))
    assert open_cache(beton, rows=[1, 2]).size < needed
    gc.collect()
    few = open_cache(beton, rows=[1, 2])
    assert "more than" in open_cache(beton).description  # also where there is memory of a few rows already
    del few
    gc.collect()
    assert "less what other images take" in open_cache(beton, rows=[1, 2], beside=needed).description
    assert open_cache(beton, mode="memory").size == needed
    gc.collect()
    monkeypatch.setattr(limits, "free_memory", lambda: 2.0 * needed - 2)
    assert "half of what is free; data.cache=memory" in open_cache(beton, mode="memory").description


def test_memory_that_is_not_to_be_had_is_a_sentence(beton):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        cache = open_cache(beton)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache.description.startswith("JPEGs are decoded in every epoch: no memory is to be had (")
    assert digest(make(beton.path, cache=cache)) == digest(make(beton.path))


def test_memory_of_the_same_name_that_could_be_cut_short_is_not_used(beton):
    strange = os.memfd_create(cache_key(beton))
    try:
        cache = open_cache(beton)
    finally:
        os.close(strange)
    assert f"of this process alone: that of process {os.getpid()} can't be used" in cache.description
    assert digest(make(beton.path, cache=cache)) == digest(make(beton.path))


def test_what_has_no_use_for_a_cache_gets_none(beton):
    for cache in (open_cache(beton, mode="none"), open_cache(beton, passes=1)):
        assert (cache.size, cache.store.size, cache.description) == (0, 0, "")
    with pytest.raises(ValueError, match="one of auto, none, memory, not 'disk'"):
        open_cache(beton, mode="disk")


def test_a_cache_of_another_file_or_of_other_rows_is_not_used(beton, jpg_beton):
    with pytest.warns(UserWarning, match="the cache is not of"):
        assert digest(make(jpg_beton, cache=open_cache(beton))) == digest(make(jpg_beton))
    with pytest.raises(ValueError, match="not of all rows of"):
        make(beton.path, rows=[3, 4], cache=open_cache(beton, rows=[4, 5]))


@kernel
def _claim(state, won):
    for k in range(state.size):
        if atomic.replace(state, k, np.uint8(0), np.uint8(1)):
            won[k] += 1
            atomic.store(state, k, np.uint8(2))


def test_one_thread_alone_claims_a_row():
    state, won = np.zeros(20000, np.uint8), np.zeros((8, 20000), np.int64)
    _claim(state[:0], won[0])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda own: _claim(state, own), won))
    assert (won.sum(0) == 1).all()
    assert (state == 2).all()
