"""Write the network of a run as ONNX, for other programs; normalisation is inside.

idmm-fast export --checkpoint runs/mine_finetune --out classifier.onnx
"""

import argparse
from collections.abc import Sequence

from ..cli import run


def export(argv: Sequence[str]) -> None:
    """Export as the arguments say, and tell what was written."""
    parser = argparse.ArgumentParser(
        prog="idmm-fast export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder, or a checkpoint in it")
    parser.add_argument("--out", default="network.onnx", metavar="FILE", help="the file (default: network.onnx)")
    args = parser.parse_args(argv)

    from .. import api

    print(f"{api.export(args.checkpoint, args.out)}: written")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(export, argv)
