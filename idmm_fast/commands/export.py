"""Write the network of a run as ONNX, for other programs; normalisation is inside.

idmm-fast export --checkpoint runs/mine_finetune --out classifier.onnx

Its input `images` is uint8 (n, 3, S, S), RGB. Its output is `logits` of a fine-tuning, whose classes are in the
metadata (`label_names`, as JSON), or `features` of a pretraining.
"""

import argparse
from collections.abc import Sequence
from functools import partial

from ..cli import run
from ..config import ConfigError, is_there

PROG = "idmm-fast export"


def export(argv: Sequence[str], prog: str = PROG) -> None:
    """Export as the arguments say, and tell what was written."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder, or a checkpoint in it")
    parser.add_argument("--out", default="network.onnx", metavar="FILE", help="the file (default: network.onnx)")
    args = parser.parse_args(argv)
    if not is_there(args.checkpoint):
        raise ConfigError(f"--checkpoint: {args.checkpoint} does not exist")

    from .. import api  # torch, which takes seconds, only for what is to be run

    print(f"{api.export(args.checkpoint, args.out)}: written")


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command."""
    run(partial(export, prog=prog), argv)
