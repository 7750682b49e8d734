"""The parts of FFCV that the loader builds on, imported without their side effects.

`import ffcv` sets torch's and numba's thread counts to 1, and with them the speed of everything else in the process.
And it makes a numba dictionary of two numbers, which compiles for five seconds; while it is imported, that is a plain
one.
"""

import sys

import numba
import numba.typed
import torch

_torch_threads, _numba_threads, _typed = torch.get_num_threads(), numba.get_num_threads(), numba.typed.Dict
numba.typed.Dict = dict
try:
    from ffcv.fields import RGBImageField
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline import PipelineSpec
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.operation import Operation
    from ffcv.traversal_order.base import TraversalOrder
finally:
    torch.set_num_threads(_torch_threads)
    numba.set_num_threads(_numba_threads)
    numba.typed.Dict = _typed
    for _name, _module in list(sys.modules.items()):
        if _name.startswith("ffcv.") and getattr(_module, "Dict", None) is dict:
            _module.Dict = _typed  # type: ignore[attr-defined]

__all__ = [
    "Compiler",
    "EpochIterator",
    "Graph",
    "Loader",
    "Operation",
    "PipelineSpec",
    "RGBImageField",
    "TraversalOrder",
]
