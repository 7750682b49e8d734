"""The sections of a configuration, shared by pretraining and fine-tuning."""

import sys
from pathlib import Path

import yaml

from ..config import ConfigError, Flag, Groups, Mapping, Number, OneOf, Pair, Param, Text, Whole, changed
from ..loader import Augment
from . import distributed, memory
from .run import config_of

AUTO = OneOf("auto", True, False)


class BatchSize(Whole):
    """A number, or auto."""

    def check(self, value):
        return value if value == "auto" else super().check(value)

    def help(self):
        return "a whole number of at least 1, or auto"


class Resume(Text):
    """no, auto or a path; YAML reads the bare word no as false."""

    def check(self, value):
        return "no" if value is False else super().check(value)


MODEL = (
    "the backbone",
    {
        "name": Param(Text(), "timm's name of the model, e.g. deit_tiny_patch16_224, pvt_v2_b0", required=True),
        "image_size": Param(Whole(8, 4096), "side of the input in pixels", default=112),
        "drop_path": Param(Number(0, 0.99), "stochastic depth rate", default=0.1),
        "options": Param(Mapping(), "further arguments of the timm model, e.g. {patch_size: 4, depth: 6}", default={}),
    },
)


def data(test):
    return (
        "what is read",
        {
            "train": Param(Text(), "beton to train on (made by write_datasets.py)", required=True),
            "test": Param(
                Text(),
                f"beton to test on{'' if test else ' (pretraining reads it for probe.every only)'}",
                default=None,
            ),
            "num_workers": Param(
                Whole(0, 1024), "loader threads of each process, 0 to share the cores among them", default=0
            ),
            "on_error": Param(
                OneOf("raise", "replace"),
                "what to do with an image of data.train that can't be decoded: stop, or let the next row stand in",
                default="raise",
            ),
        },
    )


def augment(defaults):
    """The `augment` section; `defaults` is a loader Augment."""
    return (
        "what happens to each view, in this order; 0 switches one off",
        {
            "flip": Param(Number(0, 1), "probability of a horizontal flip", default=defaults.flip),
            "jitter": Param(Number(0, 1), "probability of the colour jitter", default=defaults.jitter),
            "brightness": Param(
                Number(0, 10), "its factors are drawn from 1 - x .. 1 + x", default=defaults.brightness
            ),
            "contrast": Param(Number(0, 10), "likewise", default=defaults.contrast),
            "saturation": Param(Number(0, 10), "likewise", default=defaults.saturation),
            "hue": Param(Number(0, 0.5), "its shift is drawn from -x .. x turns", default=defaults.hue),
            "gray": Param(Number(0, 1), "probability of grayscale", default=defaults.gray),
            "blur": Param(Number(0, 1), "probability of a Gaussian blur", default=defaults.blur),
            "sigma": Param(Pair(), "its sigma in pixels is drawn from this range", default=list(defaults.sigma)),
            "operations": Param(
                Whole(0, 2),
                "how many operations of RandAugment follow, the authors' fifteen",
                default=defaults.operations,
            ),
        },
    )


def make_augment(cfg):
    """The loader's Augment from the `augment` section."""
    return Augment(**{**vars(cfg.augment), "sigma": tuple(cfg.augment.sigma)})


def fix_batch_size(schema, cfg, make_model, chunk=1):
    """`cfg` of `schema` with a number for training.batch_size=auto: the one that the run was begun with, or what fits into memory.

    make_model(): (model, machine, forward, image_bytes), see memory.largest_batch. chunk: what a process's part must be a multiple of.
    """
    if cfg.training.batch_size != "auto":
        return cfg
    resume, begun = cfg.training.resume, Path(cfg.logging.run_dir) / "config.yaml"
    if resume not in ("no", "auto"):
        begun = config_of(resume)
    elif resume == "no" and not distributed.restarted():
        begun = None
    if begun and begun.is_file():
        size = yaml.safe_load(begun.read_text(encoding="utf-8"))["training"]["batch_size"]
    else:
        fits = (
            min(memory.USUAL // distributed.world(), *distributed.of_all(memory.largest_batch(*make_model())))
            // chunk
            * chunk
        )
        if fits < 1:
            raise MemoryError(
                f"not even the {chunk} images of cutmix.chunk fit into memory; use a smaller model.image_size or cutmix.chunk"
            )
        size = fits * distributed.world()
        if distributed.rank() == 0:
            print(f"training.batch_size=auto: {size}")
    return changed(schema, cfg, {"training.batch_size": size})


def check_warmup(cfg):
    """Say so where the warm-up is as long as the training, which then ends at its highest rate, or below."""
    epochs, warmup = cfg.training.epochs, cfg.training.warmup_epochs
    if warmup >= epochs and not cfg.training.max_steps and distributed.rank() == 0:
        print(
            f"training.warmup_epochs {warmup:g} is not below training.epochs {epochs}: the learning rate will only rise",
            file=sys.stderr,
        )


def share_of_process(cfg):
    """The loader's arguments that several processes differ in, or share: {"batch_size", "num_workers", "rank", "world_size"}."""
    size, world = cfg.training.batch_size, distributed.world()
    if size % world:
        raise ConfigError(f"training.batch_size {size} is shared by {world} processes, which does not divide it")
    workers = cfg.data.num_workers or distributed.cores()
    return {"batch_size": size // world, "num_workers": workers, "rank": distributed.rank(), "world_size": world}


def training(lr, epochs):
    return (
        "how it is trained",
        {
            "epochs": Param(Whole(1), "passes over the data", default=epochs),
            "batch_size": Param(
                BatchSize(1, 1 << 20),
                "images a step (each with all its views), of all processes together; auto: 256, or as many as fit into memory",
                default=256,
            ),
            "lr": Param(Number(0), "peak learning rate of AdamW", default=lr),
            "head_lr": Param(
                Number(0), "the head learns at this multiple of lr (short runs gain by more than 1)", default=1.0
            ),
            "weight_decay": Param(Number(0), "of AdamW", default=1e-3),
            "weight_decay_end": Param(Number(0), "it goes there along a cosine; none: it stays", default=None),
            "decay_vectors": Param(Flag(), "weight decay on biases and norms too", default=True),
            "clip": Param(Number(0), "the norm that each parameter's gradient is cut to; 0: none", default=0.0),
            "warmup_epochs": Param(Number(0), "linear warm-up from 0, before the cosine", default=2.0),
            "smoothing": Param(Number(0, 1), "label smoothing", default=0.1),
            "seed": Param(Whole(0), "of the order, the crops, the mixing, the weights", default=0),
            "resume": Param(
                Resume(), "no, auto (go on if the run folder holds a checkpoint), or a checkpoint's path", default="no"
            ),
            "max_steps": Param(
                Whole(0), "for a trial: stop after so many steps, without a checkpoint; 0: go to the end", default=0
            ),
            "checkpoint_every": Param(Whole(1), "epochs between checkpoints", default=10),
            "checkpoint_minutes": Param(
                Number(0), "a checkpoint also after so many minutes, in mid-epoch; 0: no", default=10.0
            ),
            "keep_checkpoints": Param(Whole(1), "the last so many are kept, and in fine-tuning the best", default=2),
            "max_skipped": Param(
                Whole(1),
                "stop after so many steps in a row whose loss is not finite; each of them is skipped",
                default=10,
            ),
            "device": Param(OneOf("auto", "cpu", "cuda"), "where to compute", default="auto"),
            "amp": Param(
                OneOf("auto", "fp32", "bf16", "fp16"),
                "mixed precision; auto: bf16 where the hardware has it",
                default="auto",
            ),
            "channels_last": Param(AUTO, "memory format", default="auto"),
            "compile": Param(AUTO, "torch.compile; auto: for runs of 200 steps or more", default="auto"),
        },
    )


def logging():
    return (
        "what is written",
        {"run_dir": Param(Text(), "folder of the run", required=True)},
    )


def views():
    return (
        "the groups of views of every image",
        {
            "groups": Param(
                Groups(),
                "count of views, range of the share of the image's area, and size in pixels (default: model.image_size)",
                default=[{"count": 2, "scale": [0.14, 1.0]}, {"count": 4, "scale": [0.05, 0.4]}],
            ),
        },
    )


def mixing(default):
    return (
        "how images are mixed",
        {"alpha": Param(Number(0), "of the Beta distribution of the shares; 0: no mixing", default=default)},
    )
