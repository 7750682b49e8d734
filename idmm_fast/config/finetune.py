"""The configuration of fine-tuning: what `finetune.py` takes."""

from types import SimpleNamespace

from fastargs import Param

from ..errors import ConfigError
from . import sections
from .augment import Augment, augment_section
from .load import Schema
from .types import Bool, Float, Int, Stages, Str

AUGMENT = Augment(jitter_prob=0.4, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_prob=0.0, randaugment=2)

SCHEMA: Schema = {
    "data": (
        "what is read",
        {
            **sections.data("")[1],
            **sections.CACHE,
            "test": Param(
                Str(), "FFCV dataset (.beton) whose accuracy is reported; --data FOLDER has its own", required=True
            ),
            "val": Param(
                Str(),
                "FFCV dataset (.beton) that chooses the epoch whose weights are kept; none: those of the last epoch",
                default=None,
            ),
            "per_class": Param(
                Int(0), "labelled training images of each class, chosen by training.seed; 0: all", default=0
            ),
        },
    ),
    "model": (
        "the backbone",
        {
            **sections.MODEL[1],
            "image_size": Param(Int(8, 4096), "side of the input in pixels", default=224),
            "init": sections.INIT,
            "init_head": Param(
                Bool(), "take the classifier from there too, of a fine-tuning on the same classes", default=False
            ),
            "freeze": Param(
                Bool(), "only the classifier is trained; the backbone stays as it is, in evaluation mode", default=False
            ),
        },
    ),
    "crops": sections.crop_scale(),
    "augment": augment_section(AUGMENT),
    "mixup_cutmix": sections.mixing(0.5),
    "training": (
        "how it is trained",
        {
            **sections.training(lr=5e-4, epochs=200)[1],
            "layer_decay": Param(
                Float(0.01, 1),
                "each layer of the backbone learns at this multiple of the next one's lr; 1: all learn alike",
                default=1.0,
            ),
            "ema": Param(
                Float(0, 0.99999999),
                "decay of a moving average of the weights, which is evaluated and kept in their place; 0: none",
                default=0.0,
            ),
            "evaluate_every": Param(
                Int(0), "epochs between evaluations on data.val, else data.test; 0: only after the last", default=10
            ),
            "patience": Param(
                Int(0),
                "stop after so many evaluations in a row without a better top-1 on data.val; 0: train to the end",
                default=0,
            ),
        },
    ),
    "progressive": (
        "progressive resizing, which --stages runs",
        {
            "stages": Param(
                Stages(),
                "changes for each stage, in RUN_DIR/stage_K; each starts from the one before it, classifier included",
                default=[],
            )
        },
    ),
    "logging": (
        "what is written",
        {
            **sections.logging("_finetune")[1],
            "report": Param(Bool(), "report.md: accuracy by class, confusion, mistakes, calibration", default=True),
        },
    ),
}


def check(cfg: SimpleNamespace) -> None:
    """Refuse keys that make no sense together.

    Args:
        cfg: a configuration of SCHEMA.

    Raises:
        ConfigError: for the first of them.
    """
    model, training = cfg.model, cfg.training
    if model.init_head and model.init is None:
        raise ConfigError("model.init_head needs model.init, the fine-tuning whose classifier is kept")
    if model.freeze and model.init is None:
        raise ConfigError("model.freeze needs model.init, the weights that stay as they are")
    for key, default in {"optimizer": "adamw", "layer_decay": 1.0}.items():
        if model.freeze and getattr(training, key) != default:
            raise ConfigError(
                f"training.{key}={getattr(training, key)} is for a backbone that is trained, and model.freeze leaves "
                f"it as it is: take training.{key}={default}, or no model.freeze"
            )
    if training.patience and cfg.data.val is None:
        raise ConfigError(
            "training.patience needs data.val, a validation split: a training that data.test has stopped would not be "
            "tested by it. A folder has one in val/ beside train/ and test/"
        )
    if training.patience and not training.evaluate_every:
        raise ConfigError("training.patience counts evaluations: set training.evaluate_every, to 1 for each epoch")
