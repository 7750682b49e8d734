"""The cache of compiled kernels."""

import shutil

import pytest
from helpers import ROOT

from idmm_fast.kernels.jit import _STAMP, _stamp, is_cached
from idmm_fast.loader.render import render_batch


def test_compiled_kernels_are_on_disk(compiled_kernels):
    """So a second process, or the next run, compiles nothing."""
    assert is_cached(render_batch)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("kernels/blur.py", True),
        ("kernels/simd.py", True),
        ("beton/jpeg.py", True),
        ("loader/render.py", True),
        ("bench/stages.py", True),
        ("loader/cache.py", True),
        ("beton/format.py", True),
        ("loader/loader.py", False),
        ("beton/write.py", False),
    ],
)
def test_a_changed_file_of_kernels_makes_all_kernels_compile_anew(tmp_path, file, counts):
    """And a change of any other file does not."""
    package = tmp_path / "package"
    shutil.copytree(ROOT / "idmm_fast", package, ignore=shutil.ignore_patterns("__pycache__"))
    assert _stamp(package) == _STAMP
    with open(package / file, "a") as source:
        source.write("# changed\n")
    assert (_stamp(package) != _STAMP) == counts
