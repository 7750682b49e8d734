"""The cache of compiled kernels."""

from idmm_fast.kernels.jit import is_cached
from idmm_fast.loader.render import render_batch


def test_compiled_kernels_are_on_disk(compiled_kernels):
    """So a second process, or the next run, compiles nothing."""
    assert is_cached(render_batch)
