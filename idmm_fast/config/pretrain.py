"""The configuration of pretraining: what `train_idmm.py` takes."""

from types import SimpleNamespace

from fastargs import Param

from ..errors import ConfigError
from . import sections
from .augment import Augment, augment_section
from .load import Schema
from .types import Bool, Choice, Float, Int, Mapping

# Each method and its class, in idmm_fast/methods/NAME.py. Its settings are rn_configs/methods/NAME.yaml.
METHODS = {
    "idmm": "IDMM",
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "moco_v2": "MoCoV2",
    "moco_v3": "MoCoV3",
    "dino": "DINO",
}

_HEAD = {
    "loss": Param(
        Choice("auto", "dense", "fused"),
        "dense: all logits at once; fused: never; auto: fused where they would exceed head.max_dense_mb",
        default="auto",
    ),
    "max_dense_mb": Param(Int(0), "the most that the dense logits of a step may take, in MB", default=512),
    "sample_rate": Param(
        Float(1e-9, 1),
        "below 1: only this fraction of the images outside the batch takes part in a step (for millions)",
        default=1.0,
    ),
    "temperature": Param(
        Float(0), "above 0: logits are cosines of features and class weights, divided by it (dense loss)", default=0.0
    ),
    "sqrt_kl": Param(
        Float(0), "weight of a loss from the probabilities to their square roots, see docs/methods.md", default=0.0
    ),
    "workspace_mb": Param(Int(1), "what the fused loss may use beyond weights and gradients, in MB", default=768),
}

SCHEMA: Schema = {
    "data": (
        "what is read",
        {
            **sections.data(" (pretraining reads it for online_eval.every only)")[1],
            **sections.CACHE,
            "augment_on": Param(
                Choice("cpu", "device"),
                "cpu: in the loader's threads; device: GPU augmentation, of images kept there decoded (small datasets)",
                default="cpu",
            ),
        },
    ),
    "model": (sections.MODEL[0], {**sections.MODEL[1], "init": sections.INIT}),
    "method": (
        "how it learns; rn_configs/methods/ has the settings of each method",
        {
            "name": Param(Choice(*METHODS), "idmm, or a method to compare it with", default="idmm"),
            "options": Param(
                Mapping(), "arguments of the method's class, for another than idmm; see rn_configs/methods/", default={}
            ),
        },
    ),
    "crops": sections.crops(),
    "augment": augment_section(Augment()),
    "cutmix": (
        sections.mixing(0.5)[0],
        {
            **sections.mixing(0.5)[1],
            "chunk_size": Param(
                Int(0), "mix within chunks of so many images; must divide training.batch_size; 0: the batch", default=0
            ),
            "per_sample": Param(Bool(), "a box for each row instead of one for each crop group", default=False),
            "from_epoch": Param(Int(0), "epochs without mixing before it begins", default=0),
        },
    ),
    "head": ("the linear layer that tells the images apart, and its loss", _HEAD),
    "online_eval": (
        "online evaluation of the frozen features, on data.test with the labels of data.train",
        {
            "every": Param(Int(0), "epochs between evaluations, and one at the end; 0: never", default=0),
            "linear": Param(Bool(), "a linear probe too, not only kNN", default=False),
            "unlabelled_every": Param(
                Int(0),
                "epochs between looks at data.train without labels: instance_top1, rankme; 0: never",
                default=0,
            ),
        },
    ),
    "training": sections.training(lr=5e-4, epochs=800),
    "logging": sections.logging(),
}


def check(cfg: SimpleNamespace) -> None:
    """Refuse keys that make no sense together.

    Args:
        cfg: a configuration of SCHEMA.

    Raises:
        ConfigError: for the first of them.
    """
    if cfg.training.accumulate == 1:
        return
    if cfg.crops.spread > 1:
        raise ConfigError(
            f"training.accumulate={cfg.training.accumulate} does not go with crops.spread={cfg.crops.spread}, by which "
            f"an image would come back within a step: take crops.spread=1, or a larger training.batch_size"
        )
    if cfg.method.name != "idmm":
        raise ConfigError(
            f"training.accumulate={cfg.training.accumulate} is for method.name=idmm, whose loss is a mean over images; "
            f"{cfg.method.name} needs the images of a step in one batch: take a larger training.batch_size"
        )
    if cfg.head.sample_rate < 1:
        raise ConfigError(
            f"training.accumulate={cfg.training.accumulate} does not go with head.sample_rate="
            f"{cfg.head.sample_rate:g}: each batch would draw a sample of its own. Take head.sample_rate=1, or a "
            f"larger training.batch_size"
        )
