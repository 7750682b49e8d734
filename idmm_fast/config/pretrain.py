"""The configuration of pretraining: what `train_idmm.py` takes."""

from fastargs import Param

from . import sections
from .load import Bool, Choice, Float, Int, Mapping

# Each method and its class, in idmm_fast/methods/NAME.py.
METHODS = {
    "idmm": "IDMM",
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "moco_v2": "MoCoV2",
    "moco_v3": "MoCoV3",
    "dino": "DINO",
}

# The recipe of IDMM (arXiv 2201.10728), the defaults of loader.Augment.
AUGMENT = {
    "flip_prob": 0.5,
    "jitter_prob": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "grayscale_prob": 0.2,
    "blur_prob": 0.5,
    "blur_sigma": (0.1, 2.0),
    "randaugment": 0,
}

SCHEMA = {
    "data": (
        "what is read",
        {
            **sections.data(test=False)[1],
            "augment_on": Param(
                Choice("cpu", "device"),
                "where views are made: cpu: by the loader's threads; device: where training runs, from images kept there decoded (small datasets, few cores)",
                default="cpu",
            ),
        },
    ),
    "model": sections.MODEL,
    "method": (
        "how it learns; rn_configs/methods/ has the settings of each",
        {
            "name": Param(Choice(*METHODS), "idmm, or one to compare it with", default="idmm"),
            "options": Param(
                Mapping(),
                "of a method other than idmm: the arguments of its class, see rn_configs/methods/",
                default={},
            ),
        },
    ),
    "crops": sections.crops(),
    "augment": sections.augment(AUGMENT),
    "cutmix": (
        sections.mixing(0.5)[0],
        {
            **sections.mixing(0.5)[1],
            "chunk_size": Param(
                Int(0),
                "images that mix among themselves; must divide training.batch_size; 0: all of a batch",
                default=0,
            ),
            "per_sample": Param(Bool(), "a box for every row instead of one for each group of views", default=False),
        },
    ),
    "head": (
        "the linear layer that tells the images apart, and its loss",
        {
            "loss": Param(
                Choice("auto", "dense", "fused"),
                "dense: logits of all rows and images at once; fused: never; auto: fused where they would exceed head.max_dense_mb",
                default="auto",
            ),
            "max_dense_mb": Param(Int(0), "the most that the dense logits of a step may take, in MB", default=512),
            "sample_rate": Param(
                Float(1e-9, 1),
                "below 1: of the images that are not in the batch only this share, drawn anew, takes part in a step (for very many)",
                default=1.0,
            ),
            "workspace_mb": Param(
                Int(1), "what the fused loss may use beyond weights and gradients, in MB", default=768
            ),
        },
    ),
    "online_eval": (
        "how good the features are, looked at while training: on data.test, with the labels of data.train",
        {
            "every": Param(Int(0), "epochs between two looks, and one at the end; 0: never", default=0),
            "linear": Param(Bool(), "a linear probe too, not only nearest neighbours", default=False),
        },
    ),
    "training": sections.training(lr=5e-4, epochs=800),
    "logging": sections.logging(),
}
