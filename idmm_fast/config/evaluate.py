"""The configuration of evaluation: what `evaluate.py` takes."""

from fastargs import Param

from . import sections
from .load import Bool, Float, Int, Str

MINUTES = 30.0  # for a linear probe

SCHEMA = {
    "data": sections.data(test=True),
    "model": (
        "the backbone",
        {
            **sections.MODEL[1],
            "init": Param(Str(), "run folder, checkpoint or .safetensors to judge; none: random weights", default=None),
        },
    ),
    "knn": ("nearest neighbours", {"temperature": Param(Float(1e-6), "of the votes", default=0.07)}),
    "linear": (
        "the linear probe",
        {
            "enabled": Param(Bool(), "whether there is one", default=True),
            "C": Param(Float(1e-9), "C of scikit-learn's LogisticRegression", default=1.0),
            "max_minutes": Param(
                Float(0), "of fitting, about; a probe that takes longer gives no number", default=MINUTES
            ),
        },
    ),
    "training": (
        "how it is computed",
        {
            **{k: sections.training(0, 1)[1][k] for k in ("device", "amp", "channels_last", "compile")},
            "batch_size": Param(Int(1), "images at a time", default=256),
            "seed": Param(Int(0), "of random weights, and of which images the picture shows", default=0),
        },
    ),
    "logging": (
        "what is written",
        {"run_dir": Param(Str(), "folder for neighbours.png; none: no picture", default=None)},
    ),
}
