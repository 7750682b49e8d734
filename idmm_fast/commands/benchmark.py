"""Measure throughput.

python benchmark.py loader --images my_photos                       # ours, decoding alone, PIL/torchvision
python benchmark.py loader --beton data/flowers_train.beton --workers 1 --repeats 5 --json bench.json \\
    --peers official,ffcv,albumentations,dali
python benchmark.py loader --epochs 50 --limit 2040                 # many short epochs, against one as long
python benchmark.py loader --spread 6                               # an image decoded once in 6 epochs
python benchmark.py cache --images my_photos                        # JPEGs decoded once, against stored pixels
python benchmark.py writer --images my_photos                       # conversion, against FFCV's own writer
python benchmark.py loss                                            # fused loss, index targets, against dense
python benchmark.py head                                            # 20 steps of 1,281,167 instances, their memory
python benchmark.py end_to_end --images my_photos                   # training with the loader, against ready batches
python benchmark.py step --model deit_tiny_patch16_224 --batch 8    # a step against the reference, a switch at a time
python benchmark.py paper --train data/flowers_train.beton --test data/flowers_test.beton --out runs/paper
python benchmark.py gpu --images my_photos --json gpu.json          # all figures of a GPU in one go
"""

import argparse
import json
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ..cli import command_parser, run

SCRIPT = "python benchmark.py"

Command = Callable[[str, str], argparse.ArgumentParser]  # adds a benchmark by its name and what it measures


def parse(argv: Sequence[str], prog: str = SCRIPT) -> argparse.Namespace:
    """The arguments of one benchmark."""
    parser = command_parser(__doc__, SCRIPT, prog)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--repeats", type=_count, default=5, metavar="N", help="times each system runs, in turn (default: 5)"
        )
        added.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
        return added

    _add_loader(command)
    _add_cache_and_writer(command)
    _add_loss_and_head(command)
    _add_end_to_end(command)
    _add_step(command)
    _add_paper(commands.add_parser("paper", help=PAPER, description=PAPER))
    _add_gpu(command)
    return parser.parse_args(argv)


def _count(text: str, least: int = 1) -> int:
    """A number of things, not below `least`."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"a whole number, at least {least}, not {text}")
    return number


def _images(added: argparse.ArgumentParser) -> None:
    """The arguments that name images."""
    source = added.add_mutually_exclusive_group()
    source.add_argument("--beton", type=Path, metavar="FILE", help="a .beton file of JPEGs")
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="a tree of JPEGs (default: crops of scikit-learn's two photographs)"
    )


def _options(text: str) -> dict[str, Any]:
    """The arguments of a model from their JSON."""
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object; one is '{{\"depth\": 6}}'")
    return options


def _network(added: argparse.ArgumentParser) -> None:
    """The arguments that name a model."""
    added.add_argument(
        "--model", default="deit_tiny_patch16_224", metavar="NAME", help="timm's name (default: deit_tiny_patch16_224)"
    )
    added.add_argument(
        "--options",
        type=_options,
        default={},
        metavar="JSON",
        help="further arguments of the model, e.g. '{\"depth\": 6}'",
    )


def _add_loader(command: Command) -> None:
    loader = command("loader", "images/s of the six-crop pipeline, against baselines, in one run, alternating")
    _images(loader)
    loader.add_argument("--workers", type=_count, default=1, metavar="N", help="threads of each system (default: 1)")
    loader.add_argument(
        "--peers",
        default="official",
        metavar="LIST",
        help="comma-separated: official (default), ffcv, albumentations, dali; `make bench` installs and runs all",
    )
    loader.add_argument("--limit", type=_count, default=256, metavar="N", help="images a run (default: 256)")
    loader.add_argument(
        "--epochs",
        type=partial(_count, least=0),
        default=0,
        metavar="N",
        help="instead: N epochs of --limit images in eight batches, against one epoch as long",
    )
    loader.add_argument(
        "--spread",
        type=partial(_count, least=0),
        default=0,
        metavar="K",
        help="instead: one crop an image, decoded once in K epochs (crops.spread), against once an epoch",
    )
    loader.add_argument("--plot", type=Path, metavar="PNG", help="write a picture of them here")


def _add_cache_and_writer(command: Command) -> None:
    cache = command("cache", "images/s of JPEGs that are decoded once and kept in memory, against stored pixels")
    _images(cache)
    cache.add_argument("--workers", type=_count, default=1, metavar="N", help="threads of each system (default: 1)")
    cache.add_argument("--limit", type=_count, default=256, metavar="N", help="different images (default: 256)")

    writer = command("writer", "images/s of conversion to .beton, against FFCV's own writer, and its memory")
    writer.add_argument(
        "--images", type=Path, metavar="DIR", help="a tree of JPEGs (default: crops of scikit-learn's two photographs)"
    )
    writer.add_argument(
        "--count",
        type=partial(_count, least=10),
        default=2000,
        metavar="N",
        help="images a run, the tree's over and over (default: 2000)",
    )
    writer.add_argument(
        "--workers",
        type=partial(_count, least=0),
        default=0,
        metavar="N",
        help="workers of each system (default: one a core)",
    )


def _add_loss_and_head(command: Command) -> None:
    loss = command("loss", "the fused loss against the dense path's products, and index targets against dense ones")
    loss.add_argument("--batch", type=_count, default=256, metavar="B", help="rows (default: 256)")
    loss.add_argument("--dim", type=_count, default=192, metavar="D", help="length of a feature (default: 192)")
    loss.add_argument(
        "--classes", type=_count, default=1281167, metavar="N", help="instances (default: 1281167, ImageNet's)"
    )

    head = command("head", "a few steps of training with as many instances as ImageNet has, and their peak memory")
    head.add_argument("--classes", type=_count, default=1281167, metavar="N", help="instances (default: 1281167)")
    head.add_argument("--batch", type=_count, default=32, metavar="B", help="images a step (default: 32)")
    head.add_argument("--steps", type=_count, default=20, metavar="N", help="steps (default: 20)")


def _add_end_to_end(command: Command) -> None:
    end = command("end_to_end", "training on real images against training on ready batches")
    _images(end)
    end.add_argument(
        "--mode", choices=("jpg", "raw"), default="jpg", help="how the .beton file stores them (default: jpg)"
    )
    end.add_argument(
        "--views-on",
        choices=("cpu", "device"),
        default="cpu",
        help="GPU augmentation or the loader's, see data.augment_on in idmm-fast pretrain --help (default: cpu)",
    )
    end.add_argument("--limit", type=_count, default=256, metavar="N", help="different images (default: 256)")
    end.add_argument(
        "--workers", type=partial(_count, least=0), default=0, metavar="N", help="loader threads (default: one a core)"
    )
    _network(end)
    end.add_argument("--size", type=_count, default=112, metavar="N", help="side of a crop in pixels (default: 112)")
    end.add_argument(
        "--batch", type=_count, default=16, metavar="B", help="images a step, six crops each (default: 16)"
    )
    end.add_argument(
        "--steps", type=_count, default=6, metavar="N", help="steps that are timed in a round (default: 6)"
    )


def _add_step(command: Command) -> None:
    step = command("step", "crops/s of a training step against the reference implementation, a switch at a time")
    _network(step)
    step.add_argument("--size", type=_count, default=112, metavar="N", help="side of a crop in pixels (default: 112)")
    step.add_argument("--batch", type=_count, default=8, metavar="B", help="images a step, six crops each (default: 8)")
    step.add_argument("--instances", type=_count, default=2040, metavar="N", help="classes of the head (default: 2040)")
    step.add_argument("--steps", type=_count, default=4, metavar="N", help="steps of a system in a round (default: 4)")
    step.add_argument(
        "--low",
        choices=("auto", "bf16", "none"),
        default="auto",
        help="lower precision too, where the hardware has it (auto, the default), always, or never",
    )
    step.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (default: auto)")


PAPER = "the paper's whole schedule on a dataset, stage by stage: minutes, rates, accuracy; called again, it resumes"


def _add_paper(paper: argparse.ArgumentParser) -> None:
    paper.add_argument("--train", type=Path, required=True, metavar="BETON", help="the training images")
    paper.add_argument("--test", type=Path, required=True, metavar="BETON", help="the test images")
    paper.add_argument("--out", type=Path, required=True, metavar="RUNS", help="folder of the runs; paper.json is here")
    paper.add_argument("--json", type=Path, metavar="OUT", help="write all figures here too, and a table beside it")
    _network(paper)
    paper.add_argument(
        "--stages",
        default="pretrain,finetune,random,ladder",
        metavar="LIST",
        help="comma-separated (default: pretrain,finetune,random,ladder, which is all)",
    )
    paper.add_argument(
        "--epochs-scale", type=float, default=1.0, metavar="F", help="multiply all epochs by F (default: 1.0)"
    )
    paper.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value in the recipes, e.g. training.batch_size=64; may be given several times",
    )


def _add_gpu(command: Command) -> None:
    gpu = command("gpu", "a real pretraining, step and end_to_end on a GPU: 4 minutes for DeiT-Tiny alone")
    _images(gpu)
    gpu.add_argument("--limit", type=_count, default=256, metavar="N", help="different images (default: 256)")
    gpu.add_argument(
        "--models",
        default="deit_tiny_patch16_224,pvt_v2_b0,t2t_vit_t_14",
        metavar="LIST",
        help="timm's names, comma-separated; the first one is trained (default: %(default)s)",
    )
    gpu.add_argument(
        "--small",
        action="store_true",
        help="a dry run of the benchmark itself, on whatever there is; its figures mean nothing",
    )


def benchmark(argv: Sequence[str], prog: str = SCRIPT) -> None:
    """Run the benchmark that the arguments name."""
    began = time.perf_counter()  # what takes long is imported later
    args = parse(argv, prog)
    if getattr(args, "beton", None) and not args.beton.exists():
        raise FileNotFoundError(f"--beton {args.beton} does not exist")
    if getattr(args, "images", None) and not args.images.is_dir():
        raise FileNotFoundError(f"--images {args.images} is not a folder")
    args.began, args.command_line = began, shlex.join([*prog.split(), *argv])
    import_module(f"..bench.{args.command}", __package__).run(args)


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> None:
    """The command."""
    run(partial(benchmark, prog=prog), argv)
