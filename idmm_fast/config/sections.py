"""The sections of a configuration that several programs share."""

import re
from pathlib import Path
from types import SimpleNamespace

from fastargs import Param

from .types import (
    AUTO,
    BatchSize,
    Bool,
    Channels,
    Choice,
    CropGroups,
    CropSchedule,
    Derived,
    Float,
    Int,
    Mapping,
    Range,
    Resume,
    Str,
)

Section = tuple[str, dict[str, Param]]

MODEL: Section = (
    "the backbone",
    {
        "name": Param(
            Str(), "timm's name of the model, like deit_tiny_patch16_224; --config own has it", required=True
        ),
        "image_size": Param(Int(8, 4096), "side of the input in pixels", default=112),
        "drop_path": Param(Float(0, 0.99), "stochastic depth rate", default=0.1),
        "options": Param(Mapping(), "further arguments of the timm model, e.g. {patch_size: 4, depth: 6}", default={}),
        "mean": Param(
            Channels(0),
            "images are normalised by it; none: as the weights of model.init, else ImageNet's",
            default=None,
        ),
        "std": Param(Channels(1e-6), "likewise", default=None),
    },
)

INIT = Param(
    Str(),
    "run folder, checkpoint, .safetensors (timm's too) or timm:NAME to start from; none: random weights",
    default=None,
)


def data(test: str) -> Section:
    """What is read.

    Args:
        test: what data.test is used for.
    """
    return (
        "what is read",
        {
            "train": Param(Str(), "images to train on: an FFCV dataset (.beton), or --data FOLDER", required=True),
            "test": Param(Str(), f"FFCV dataset (.beton) to test on{test}", default=None),
            "num_workers": Param(Int(0, 1024), "loader threads of each process; 0: share the cores", default=0),
            "on_error": Param(
                Choice("raise", "replace"),
                "for an image of data.train that can't be decoded: stop, or take the next one in its place",
                default="raise",
            ),
        },
    )


CACHE = {
    "cache": Param(
        Choice("auto", "none", "memory"),
        "decode JPEGs once and keep their pixels in memory, which the processes of a machine share; auto: where they "
        "take at most an eighth of memory; memory: half of what is free; none: decode them in every epoch",
        default="auto",
    )
}


def training(lr: float, epochs: int) -> Section:
    """How it is trained.

    Args:
        lr: the default of training.lr.
        epochs: the default of training.epochs.
    """
    return "how it is trained", {**_schedule(lr, epochs), **_run(), **RUNTIME}


def _schedule(lr: float, epochs: int) -> dict[str, Param]:
    """What decides the weights."""
    return {
        "epochs": Param(Int(1), "passes over the data", default=epochs),
        "minutes": Param(
            Float(0, 1e7),
            "train for so long, evaluations and checkpoints included, and not for training.epochs; 0: by epochs. "
            "Start, and the report of a fine-tuning, come on top; --stages and --folds take it for each training",
            default=0.0,
        ),
        "batch_size": Param(
            BatchSize(1, 1 << 20),
            "images a batch (each with all its crops), of all processes; auto: 256, or as many as fit in memory",
            default=256,
        ),
        "accumulate": Param(
            Int(1, 1 << 20),
            "batches a step: their gradients add up to those of one batch so many times as large",
            default=1,
        ),
        "optimizer": Param(
            Choice("adamw", "muon"), "muon: for the backbone's linear layers, and AdamW for the rest", default="adamw"
        ),
        "lr": Param(Float(0), "peak learning rate", default=lr),
        "head_lr_scale": Param(
            Float(0), "the head learns at this multiple of lr (above 1 helps short runs)", default=1.0
        ),
        "weight_decay": Param(Float(0), "weight decay", default=1e-3),
        "weight_decay_end": Param(Float(0), "weight decay moves there along a cosine; none: it stays", default=None),
        "decay_norm_bias": Param(Bool(), "weight decay on biases and norms too", default=True),
        "clip_grad": Param(
            Float(0), "clip each parameter's gradient to this norm, as DINO does; 0: never", default=0.0
        ),
        "warmup_epochs": Param(Float(0), "epochs of linear warm-up from 0, before the cosine", default=2.0),
        "label_smoothing": Param(Float(0, 1), "label smoothing", default=0.1),
        "seed": Param(Int(0), "seed of the order, the crops, the mixing and the weights", default=0),
    }


def _run() -> dict[str, Param]:
    """Checkpoints, and when a run ends early."""
    return {
        "resume": Param(
            Resume(), "no, auto (resume if the run folder holds a checkpoint), or a checkpoint's path", default="no"
        ),
        "max_steps": Param(
            Int(0), "dry run: stop after so many steps in all, without a checkpoint; 0: run to the end", default=0
        ),
        "checkpoint_every": Param(Int(1), "epochs between checkpoints", default=10),
        "checkpoint_minutes": Param(Float(0), "minutes between checkpoints, also within an epoch; 0: no", default=10.0),
        "keep_checkpoints": Param(
            Int(1), "how many checkpoints are kept, the newest; fine-tuning keeps the best too", default=2
        ),
        "max_nonfinite_steps": Param(
            Int(1), "a step whose loss is not finite is skipped; stop after so many in a row", default=10
        ),
    }


RUNTIME = {
    "device": Param(Choice("auto", "cpu", "cuda"), "where to compute", default="auto"),
    "amp": Param(
        Choice("auto", "fp32", "bf16", "fp16"), "mixed precision; auto: bf16 where the hardware has it", default="auto"
    ),
    "channels_last": Param(AUTO, "memory format", default="auto"),
    "compile": Param(AUTO, "torch.compile; auto: for runs of 3,000 steps or more, on a CPU 200", default="auto"),
}


def crops() -> Section:
    """The multi-crop groups of pretraining."""
    return (
        "the multi-crop groups of every image: global crops, local crops",
        {
            "groups": Param(
                CropGroups(),
                "number of crops, range of the fraction of the image's area, size in pixels (else model.image_size)",
                default=[{"count": 2, "scale": [0.14, 1.0]}, {"count": 4, "scale": [0.05, 0.4]}],
            ),
            "schedule": Param(
                CropSchedule(),
                "other sizes of the crops, each from a fraction of training.epochs on: of all groups, or a list with "
                "one of each",
                default=[],
            ),
            "spread": Param(
                Int(1, 64),
                "decode an image once in so many epochs, and keep its crops for their steps; must divide "
                "training.epochs where spread_mb does not hold the crops of all images; 1: in every epoch",
                default=1,
            ),
            "spread_mb": Param(
                Int(1),
                "the most that these crops take, in MB, of all processes together; more mixes the images better",
                default=1024,
            ),
        },
    )


def crop_scale() -> Section:
    """The one crop of fine-tuning."""
    description = "range of the fraction of the image's area that a random crop takes"
    return "the crop of every image", {"scale": Param(Range(), description, default=[0.08, 1.0])}


def mixing(alpha: float) -> Section:
    """How images are mixed.

    Args:
        alpha: the default of the section's key alpha.
    """
    description = "lam is drawn from a Beta distribution with both parameters alpha; 0: no mixing"
    return "how images are mixed", {"alpha": Param(Float(0), description, default=alpha)}


def logging(suffix: str = "") -> Section:
    """What is written.

    Args:
        suffix: what ends the default name of the run folder.
    """
    names = f"runs/DATASET_BACKBONE{suffix or ', and _METHOD for another than idmm'}"
    run_dir = Derived(lambda cfg: default_run_dir(cfg, suffix))
    return (
        "what is written",
        {
            "run_dir": Param(run_dir, f"folder of the run; auto: {names}", default="auto"),
            "wandb": Param(Str(), "project of Weights & Biases that gets the metrics too; none: no", default=None),
            "mlflow": Param(Str(), "experiment of MLflow that gets the metrics too; none: no", default=None),
        },
    )


def default_run_dir(cfg: SimpleNamespace, suffix: str) -> str:
    """The run folder of a configuration that names none: runs/DATASET_BACKBONE[_METHOD]SUFFIX.

    DATASET is the file name of data.train without _train, BACKBONE is timm's name up to _patch or a dot, and METHOD is
    left out for idmm.
    """
    train = Path(cfg.data.train)
    dataset = train.resolve().parent.name if train.stem == "train" else train.stem.removesuffix("_train")
    backbone = re.sub(r"[^\w-]+", "_", re.split(r"_patch\d|\.", cfg.model.name.rpartition("/")[2])[0])
    method = getattr(cfg, "method", None)
    named = f"_{method.name}" if method and method.name != "idmm" else ""
    return f"runs/{dataset}_{backbone}{named}{suffix}"
