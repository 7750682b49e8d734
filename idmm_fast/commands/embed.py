"""Write every image of a folder as a vector: its features under the frozen network of a run.

idmm-fast embed --checkpoint runs/mine --images my_images --out features.npz
"""

import argparse
from collections.abc import Sequence

from ..cli import run


def embed(argv: Sequence[str]) -> None:
    """Embed as the arguments say, and tell what was written."""
    parser = argparse.ArgumentParser(
        prog="idmm-fast embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder, or a checkpoint in it")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="a folder of images, or a .beton file")
    parser.add_argument("--out", default="features.npz", metavar="FILE", help="a .npz or .csv file")
    parser.add_argument("--image-size", type=int, metavar="S", help="side of the input in pixels (default: the run's)")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images at a time (default: 256)")
    args = parser.parse_args(argv)

    from .. import api

    features, _ = api.embed(args.images, args.checkpoint, args.out, args.image_size, args.batch_size)
    print(f"{args.out}: {features.shape[0]} images, {features.shape[1]} numbers each")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(embed, argv)
