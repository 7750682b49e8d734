"""Predict the classes of new images with a fine-tuned network; no conversion is needed.

python predict.py --checkpoint runs/mine_finetune --images new_images --out predictions.csv
python predict.py --checkpoint runs/mine_finetune --images a.jpg b.png --topk 3 --out predictions.json

Images are seen as in evaluation: the same pixels, the same precision. An image that can't be read is listed with the
reason, and the others are predicted.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import command_parser, run
from ..config import ConfigError, is_there
from ..files import PREDICTION_ENDINGS

SCRIPT = "python predict.py"


def parse(argv: Sequence[str], prog: str = SCRIPT) -> argparse.Namespace:
    """The options."""
    parser = command_parser(__doc__, SCRIPT, prog, allow_abbrev=False)
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="run folder of a fine-tuning, or a checkpoint in it"
    )
    parser.add_argument(
        "--images", required=True, nargs="+", type=Path, metavar="PATH", help="images, and folders of images"
    )
    parser.add_argument(
        "--out",
        default="predictions.csv",
        metavar="FILE",
        help="a .csv, .json or .parquet file (default: predictions.csv)",
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="how many classes for each image (default: 5)")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image: slower, a little better")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images at a time (default: 256)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads that read images (default: cores)")
    return parser.parse_args(argv)


def predict(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Predict as the arguments say, and tell what was written."""
    args = parse(argv, prog)
    if not is_there(args.checkpoint):
        of_run = ", which has best.pt only where it was evaluated more than once" * args.checkpoint.endswith("best.pt")
        raise ConfigError(f"{args.checkpoint} does not exist; --checkpoint is the run folder of a fine-tuning{of_run}")
    for path in args.images:
        if not path.exists():
            raise ConfigError(f"--images: {path} does not exist; name images, or folders of them")
    if Path(args.out).suffix.lower() not in PREDICTION_ENDINGS:
        raise ConfigError(
            f"--out: {args.out} ends neither in {', nor in '.join(PREDICTION_ENDINGS)}, as predictions are written"
        )

    # torch, which takes seconds, only for what is to be run
    from ..evaluate.predict import PredictOptions, predict_files, printable
    from ..evaluate.prediction_files import check_table, write_predictions

    options = PredictOptions(args.topk, args.flip, args.device, args.batch_size, args.workers)
    check_table(args.out)
    found = predict_files(args.checkpoint, args.images, options)
    write_predictions(found, args.out)
    for k, reason in found.damaged.items():
        print(f"  could not be read: {printable(found.files[k])}: {reason}")
    damaged = f", {len(found.damaged)} could not be read" if found.damaged else ""
    print(f"{printable(args.out)}: {len(found.files) - len(found.damaged)} images predicted{damaged}")


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(predict, prog=prog), argv)
