"""Pretraining vision transformers on small image datasets: instance discrimination with multi-crop and CutMix."""

import sys

__version__ = "0.2.0"  # before the imports, which look at it

if sys.platform != "linux":  # in one sentence, in scripts and notebooks; the imports below would end in a traceback
    sys.exit(
        "error: idmm_fast needs Linux, since FFCV does. On Windows use WSL 2; on macOS, a Linux machine or container "
        "(the Dockerfile of this project)."
    )

from .api import embed, export, finetune, predict, pretrain

__all__ = ["embed", "export", "finetune", "predict", "pretrain"]
