"""The configuration of fine-tuning: what `finetune.py` takes."""

from fastargs import Param

from . import sections
from .load import Bool, Int, Range, Stages, Str
from .pretrain import AUGMENT as PRETRAINING_AUGMENT

AUGMENT = PRETRAINING_AUGMENT | {
    "jitter_prob": 0.4,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "blur_prob": 0.0,
    "randaugment": 2,
}

SCHEMA = {
    "data": (
        "what is read",
        {
            **sections.data(test=True)[1],
            "per_class": Param(
                Int(0), "use this many labelled training images a class, chosen by training.seed; 0: all", default=0
            ),
        },
    ),
    "model": (
        "the backbone",
        {
            **sections.MODEL[1],
            "image_size": Param(Int(8, 4096), "side of the input in pixels", default=224),
            "init": Param(
                Str(),
                "run folder, checkpoint or .safetensors (timm's too) to start from; none: random weights",
                default=None,
            ),
            "init_head": Param(
                Bool(), "take the classifier from there too, which a fine-tuning of the same classes has", default=False
            ),
        },
    ),
    "crops": (
        "the view of every image",
        {
            "scale": Param(
                Range(), "range of the share of the image's area that a random crop takes", default=[0.08, 1.0]
            )
        },
    ),
    "augment": sections.augment(AUGMENT),
    "mixup_cutmix": sections.mixing(0.5),
    "training": (
        "how it is trained",
        {
            **sections.training(lr=5e-4, epochs=200)[1],
            "evaluate_every": Param(
                Int(0), "epochs between evaluations on data.test; 0: only after the last", default=10
            ),
        },
    ),
    "progressive": (
        "what --stages runs",
        {
            "stages": Param(
                Stages(),
                "changes for each stage; each begins with the weights and the classifier of the one before, in RUN_DIR/stage_K",
                default=[],
            )
        },
    ),
    "logging": sections.logging(),
}
