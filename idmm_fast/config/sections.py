"""The sections of a configuration, shared by pretraining and fine-tuning."""

from fastargs import Param

from .load import Bool, Choice, CropGroups, Float, Int, Mapping, Range, Str

AUTO = Choice("auto", True, False)


class BatchSize(Int):
    """A number, or auto."""

    def check(self, value):
        return value if value == "auto" else super().check(value)

    def help(self):
        return "a whole number of at least 1, or auto"


class Resume(Str):
    """no, auto or a path; YAML reads the bare word no as false."""

    def check(self, value):
        return "no" if value is False else super().check(value)


MODEL = (
    "the backbone",
    {
        "name": Param(Str(), "timm's name of the model, e.g. deit_tiny_patch16_224, pvt_v2_b0", required=True),
        "image_size": Param(Int(8, 4096), "side of the input in pixels", default=112),
        "drop_path": Param(Float(0, 0.99), "stochastic depth rate", default=0.1),
        "options": Param(Mapping(), "further arguments of the timm model, e.g. {patch_size: 4, depth: 6}", default={}),
    },
)


def data(test):
    return (
        "what is read",
        {
            "train": Param(Str(), "beton to train on (made by write_datasets.py)", required=True),
            "test": Param(
                Str(),
                f"beton to test on{'' if test else ' (pretraining reads it for online_eval.every only)'}",
                default=None,
            ),
            "num_workers": Param(
                Int(0, 1024), "loader threads of each process, 0 to share the cores among them", default=0
            ),
            "on_error": Param(
                Choice("raise", "replace"),
                "what to do with an image of data.train that can't be decoded: stop, or let the next row stand in",
                default="raise",
            ),
        },
    )


def augment(defaults):
    """The `augment` section; `defaults` has a value for each of its keys, as loader.Augment has them."""
    return (
        "what happens to each view, in this order; 0 switches one off",
        {
            "flip_prob": Param(Float(0, 1), "probability of a horizontal flip", default=defaults["flip_prob"]),
            "jitter_prob": Param(Float(0, 1), "probability of the colour jitter", default=defaults["jitter_prob"]),
            "brightness": Param(
                Float(0, 10), "its factors are drawn from 1 - x .. 1 + x", default=defaults["brightness"]
            ),
            "contrast": Param(Float(0, 10), "likewise", default=defaults["contrast"]),
            "saturation": Param(Float(0, 10), "likewise", default=defaults["saturation"]),
            "hue": Param(Float(0, 0.5), "its shift is drawn from -x .. x turns", default=defaults["hue"]),
            "grayscale_prob": Param(Float(0, 1), "probability of grayscale", default=defaults["grayscale_prob"]),
            "blur_prob": Param(Float(0, 1), "probability of a Gaussian blur", default=defaults["blur_prob"]),
            "blur_sigma": Param(
                Range(), "its sigma in pixels is drawn from this range", default=list(defaults["blur_sigma"])
            ),
            "randaugment": Param(
                Int(0, 2),
                "how many operations of RandAugment follow, the authors' fifteen",
                default=defaults["randaugment"],
            ),
        },
    )


def training(lr, epochs):
    return (
        "how it is trained",
        {
            "epochs": Param(Int(1), "passes over the data", default=epochs),
            "batch_size": Param(
                BatchSize(1, 1 << 20),
                "images a step (each with all its views), of all processes together; auto: 256, or as many as fit into memory",
                default=256,
            ),
            "lr": Param(Float(0), "peak learning rate of AdamW", default=lr),
            "head_lr_scale": Param(
                Float(0), "the head learns at this multiple of lr (short runs gain by more than 1)", default=1.0
            ),
            "weight_decay": Param(Float(0), "of AdamW", default=1e-3),
            "weight_decay_end": Param(Float(0), "it goes there along a cosine; none: it stays", default=None),
            "decay_norm_bias": Param(Bool(), "weight decay on biases and norms too", default=True),
            "clip_grad": Param(Float(0), "the norm that each parameter's gradient is cut to; 0: none", default=0.0),
            "warmup_epochs": Param(Float(0), "linear warm-up from 0, before the cosine", default=2.0),
            "label_smoothing": Param(Float(0, 1), "label smoothing", default=0.1),
            "seed": Param(Int(0), "of the order, the crops, the mixing, the weights", default=0),
            "resume": Param(
                Resume(), "no, auto (go on if the run folder holds a checkpoint), or a checkpoint's path", default="no"
            ),
            "max_steps": Param(
                Int(0), "for a trial: stop after so many steps, without a checkpoint; 0: go to the end", default=0
            ),
            "checkpoint_every": Param(Int(1), "epochs between checkpoints", default=10),
            "checkpoint_minutes": Param(
                Float(0), "a checkpoint also after so many minutes, in mid-epoch; 0: no", default=10.0
            ),
            "keep_checkpoints": Param(Int(1), "the last so many are kept, and in fine-tuning the best", default=2),
            "max_nonfinite_steps": Param(
                Int(1),
                "stop after so many steps in a row whose loss is not finite; each of them is skipped",
                default=10,
            ),
            "device": Param(Choice("auto", "cpu", "cuda"), "where to compute", default="auto"),
            "amp": Param(
                Choice("auto", "fp32", "bf16", "fp16"),
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
        {"run_dir": Param(Str(), "folder of the run", required=True)},
    )


def crops():
    return (
        "the groups of views of every image",
        {
            "groups": Param(
                CropGroups(),
                "count of views, range of the share of the image's area, and size in pixels (default: model.image_size)",
                default=[{"count": 2, "scale": [0.14, 1.0]}, {"count": 4, "scale": [0.05, 0.4]}],
            ),
        },
    )


def mixing(default):
    return (
        "how images are mixed",
        {"alpha": Param(Float(0), "of the Beta distribution of the shares; 0: no mixing", default=default)},
    )
