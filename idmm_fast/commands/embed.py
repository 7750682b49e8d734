"""Write every image of a folder as a vector: its features under the frozen network of a run.

idmm-fast embed --checkpoint runs/mine --images my_images --out features.npz
idmm-fast embed --checkpoint runs/mine_finetune --images data/mine_test.beton --out features.csv

Of a folder with splits, the training images are taken. A .npz file has the arrays features, labels and files; a line of
a .csv file has the file, the label and the numbers.
"""

import argparse
from collections.abc import Sequence
from functools import partial

from ..cli import run
from ..config import ConfigError, is_there

PROG = "idmm-fast embed"


def embed(argv: Sequence[str], prog: str = PROG) -> None:
    """Embed as the arguments say, and tell what was written."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder, or a checkpoint in it")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="a folder of images, or a .beton file")
    parser.add_argument(
        "--out", default="features.npz", metavar="FILE", help="a .npz or .csv file (default: features.npz)"
    )
    parser.add_argument("--image-size", type=int, metavar="S", help="side of the input in pixels (default: the run's)")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images at a time (default: 256)")
    args = parser.parse_args(argv)
    for option, path in (("checkpoint", args.checkpoint), ("images", args.images)):
        if not is_there(path):
            raise ConfigError(f"--{option}: {path} does not exist")

    from .. import api  # torch, which takes seconds, only for what is to be run

    features, files = api.embed(args.images, args.checkpoint, args.out, args.image_size, args.batch_size)
    named = "" if files else "; their order is that of the .beton file"
    print(f"{args.out}: {features.shape[0]} images, {features.shape[1]} numbers each{named}")


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command."""
    run(partial(embed, prog=prog), argv)
