"""timm's backbones at any resolution, and their weights from one resolution to another."""

import difflib
import inspect
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from . import t2t  # noqa: F401  timm knows its models from here on

PRETRAIN_STD = (0.228, 0.224, 0.225)  # as the authors released it; 0.229 is the usual figure
FINETUNE_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """uint8 (B, 3, H, W), levels 0..255, to float: (x / 255 - mean) / std, per channel, on whatever device x is on."""

    def __init__(self, mean=(0.485, 0.456, 0.406), std=FINETUNE_STD):
        super().__init__()
        mean, std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images):
        return images.to(self.scale.dtype) * self.scale + self.shift


def create_backbone(name, image_size, drop_path=0.0, options=None):
    """timm's model `name`, or a T2T-ViT (see t2t.py), without classifier: (B, 3, image_size, image_size) -> features (B, d).

    The feature is the class token after the last norm (DeiT, ViT, T2T-ViT) or the mean of the last stage's tokens (PVTv2, Swin).
    options: further arguments of the timm model, e.g. {"patch_size": 4, "depth": 6}. Raises ValueError for a name that
    timm does not know, with the nearest ones, or options that do not fit.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5, 0.0)
        raise ValueError(f"timm has no model '{name}'. Names that come near: {', '.join(near)}.")
    options = dict(options or {})
    options |= _size_options(name, image_size)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path, **options)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"timm can't make '{name}' at {image_size} pixels with model.options {options}: {error}"
        ) from error


def _size_options(name, image_size):
    """What tells timm's model `name` its resolution: nothing for PVTv2, which takes any as it is."""
    return {} if "pvt" in inspect.getmodule(timm.model_entrypoint(name)).__name__ else {"img_size": image_size}


def feature_dim(backbone):
    """Length of the backbone's feature vector."""
    return backbone.num_features


def save_backbone(backbone, path):
    """Write the weights, with timm's own keys, as safetensors."""
    save_file({k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}, str(path))


def classifier_name(backbone):
    """What timm calls the last layer of this model: "head" mostly."""
    return (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier", "head")


def save_classifier(backbone, head, path):
    """Write the weights of backbone and classifier, with the keys of timm's model, as safetensors."""
    where = classifier_name(backbone)
    weights = backbone.state_dict() | {f"{where}.weight": head.weight, f"{where}.bias": head.bias}
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, str(path))


def timm_config(backbone, name, image_size, classes, options):
    """What timm's config.json holds: the architecture, its arguments, and how images must be prepared. With it and model.safetensors in one
    folder, timm.create_model("local-dir:FOLDER", pretrained=True) makes the classifier."""
    return {
        "architecture": name, "num_classes": classes, "model_args": options | _size_options(name, image_size),
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size], "interpolation": "bicubic", "crop_pct": 224 / 256, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": list(FINETUNE_STD), "num_classes": classes, "classifier": classifier_name(backbone),
        },
    }  # fmt: skip


def read_weights(path):
    """{key: tensor} from a run folder, a checkpoint of this project or of others, or a `.safetensors` file. Raises ValueError."""
    path = Path(path)
    if path.is_dir():
        path = next((f for f in (path / "backbone.safetensors", path / "model.safetensors") if f.exists()), path / "backbone.safetensors")
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; name a run folder of a finished training, a checkpoint or a .safetensors file"
        )
    if path.suffix == ".safetensors":
        return load_file(str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{path} is damaged or holds more than tensors ({type(error).__name__}); a .safetensors file is safer") from error
    weights = state.get("model", state.get("state_dict", state))
    ours = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    return ours | {k: v for k, v in weights.items() if k.startswith("head.")} if ours else weights


def load_backbone(backbone, path, head=None):
    """Load weights from a run folder, a checkpoint or a `.safetensors` file into `backbone`; returns how many tensors came.

    The position embedding, and Swin's table of relative ones, is resampled (bicubic) where the resolution differs; everything else must agree by name and
    shape. timm's own files of pretrained weights will do too. Nothing is unpickled but plain tensors. head: the linear layer that gets the
    classifier of the file, which must be there and for as many classes; None: it is left out. Raises ValueError.
    """
    weights = read_weights(path)
    own = backbone.state_dict()
    if "pos_embed" in own and "pos_embed" in weights and own["pos_embed"].shape != weights["pos_embed"].shape:
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"],
            new_size=list(backbone.patch_embed.grid_size),
            num_prefix_tokens=backbone.num_prefix_tokens,
        )
    for key in (k for k in own if k.endswith("relative_position_bias_table") and k in weights and own[k].shape != weights[k].shape):
        attention = backbone.get_submodule(key.removesuffix(".relative_position_bias_table"))  # Swin: a window over a smaller map
        weights[key] = resize_rel_pos_bias_table(weights[key], attention.window_size, own[key].shape)
    wrong = sorted(k for k in own if k not in weights or own[k].shape != weights[k].shape)
    if wrong:
        raise ValueError(
            f"{path} does not fit this model: {len(wrong)} of {len(own)} tensors are missing or of another shape, first '{wrong[0]}'. "
            f"Use the model.name and model.options that it was trained with."
        )
    backbone.load_state_dict({k: weights[k] for k in own})
    for key, mine in head.state_dict().items() if head is not None else ():
        found = weights.get(f"{classifier_name(backbone)}.{key}", weights.get(f"head.{key}"))
        if found is None or found.shape != mine.shape:
            has = "no classifier" if found is None else f"a classifier for {found.shape[0]} classes"
            raise ValueError(f"{path} has {has}, and {mine.shape[0]} classes are wanted; leave out model.keep_head")
        mine.copy_(found)
    return len(own)
