"""The configuration of evaluation: what `evaluate.py` takes."""

from collections.abc import Sequence

from fastargs import Param

from ..errors import ConfigError
from . import sections
from .load import Schema, find_run_config, is_there
from .types import Bool, Float, Int, Str

PROBE_MINUTES = 30.0

SCHEMA: Schema = {
    "data": (
        "what is read",
        {
            **sections.data("")[1],
            "test": Param(
                Str(), "FFCV dataset (.beton) whose images are classified; --data FOLDER has its own", required=True
            ),
        },
    ),
    "model": (
        "the backbone",
        {
            **sections.MODEL[1],
            "init": Param(
                Str(),
                "run folder, checkpoint, .safetensors or timm:NAME to evaluate; none: random weights",
                default=None,
            ),
        },
    ),
    "knn": ("nearest neighbours", {"temperature": Param(Float(1e-6), "temperature of the votes", default=0.07)}),
    "linear": (
        "the linear probe",
        {
            "enabled": Param(Bool(), "whether there is one", default=True),
            "C": Param(Float(1e-9), "C of scikit-learn's LogisticRegression", default=1.0),
            "max_minutes": Param(
                Float(0),
                "about how long it may fit; a probe that takes longer gives no number",
                default=PROBE_MINUTES,
            ),
        },
    ),
    "training": (
        "how it is computed",
        {
            **sections.RUNTIME,
            "batch_size": Param(Int(1), "images at a time", default=256),
            "seed": Param(Int(0), "seed of random weights, and of the images that the picture shows", default=0),
        },
    ),
    "logging": (
        "what is written",
        {"run_dir": Param(Str(), "folder for neighbours.png; none: no picture", default=None)},
    ),
}


def run_config(argv: Sequence[str]) -> list[str]:
    """The arguments of the run that --checkpoint names: its config.yaml, and where it lies now; none if it is no run's.

    Raises:
        ConfigError: if what --checkpoint names is not there.
    """
    for k, arg in enumerate(argv):
        name, eq, value = arg.partition("=")
        if name in ("--checkpoint", "--model.init"):
            value = value if eq else argv[k + 1] if k + 1 < len(argv) else ""
            if value.lower() not in ("", "none", "null", "~") and not is_there(value):
                raise ConfigError(
                    f"{value} does not exist; {name} is a run folder, a checkpoint in it or a .safetensors file"
                )
            found = find_run_config(value)
            if found:
                return ["--config", str(found), f"--logging.run_dir={found.parent}"]
    return []
