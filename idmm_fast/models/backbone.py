"""timm's backbones at any resolution, and their weights from one resolution to another."""

import difflib
import inspect
import math
import os
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save
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
    timm does not know, with the nearest ones, options that do not fit, or a size that the model can't take.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5)
        raise ValueError(
            f"timm has no model '{name}'. "
            + (f"Names that come near: {', '.join(near)}." if near else "timm.list_models() lists all names.")
        )
    options = dict(options or {})
    options |= _size_options(name, image_size)
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path, **options)
        with torch.no_grad():  # some models are made at sizes that they can't take
            found = tuple(backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape)
    except Exception as error:  # timm raises many kinds
        raise ValueError(
            f"timm can't make '{name}' at {image_size} pixels with model.options {options}: {error}"
        ) from error
    if found != (1, feature_dim(backbone)):
        raise ValueError(
            f"'{name}' gives no feature vector: of an image it makes {found}, not (1, {feature_dim(backbone)}). Use another model.name."
        )
    return backbone.train()


def _size_options(name, image_size):
    """What tells timm's model `name` its resolution: nothing for PVTv2, which takes any as it is."""
    return {} if "pvt" in inspect.getmodule(timm.model_entrypoint(name)).__name__ else {"img_size": image_size}


def feature_dim(backbone):
    """Length of the backbone's feature vector."""
    return backbone.num_features


def save_backbone(backbone, path):
    """Write the weights, with timm's own keys, as safetensors, whole or not at all. Raises OSError."""
    _save(backbone.state_dict(), path)


def _save(weights, path):
    weights = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in weights.items()
    }  # a copy: some models share tensors
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:  # not by save_file, whose files nobody else may read
            file.write(save(weights))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def classifier_names(backbone):
    """What timm calls the last layer of this model: "head" mostly; a distilled DeiT has two, whose outputs are averaged."""
    names = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier", "head")
    return [names] if isinstance(names, str) else list(names)


def save_classifier(backbone, head, path):
    """Write the weights of backbone and classifier, with the keys of timm's model, as safetensors, whole or not at all. Raises OSError."""
    _save(
        backbone.state_dict()
        | {f"{name}.{k}": v for name in classifier_names(backbone) for k, v in head.state_dict().items()},
        path,
    )


def timm_config(backbone, name, image_size, classes, options):
    """What timm's config.json holds: the architecture, its arguments, and how images must be prepared. With it and model.safetensors in one
    folder, timm.create_model("local-dir:FOLDER", pretrained=True) makes the classifier."""
    names = classifier_names(backbone)
    resized = round(
        image_size * 256 / 224
    )  # what evaluation_loader does before it cuts the centre out; timm: floor(image_size / crop_pct)
    crop = image_size / resized
    crop = crop if math.floor(image_size / crop) == resized else math.nextafter(crop, 0)
    return {
        "architecture": name,
        "num_classes": classes,
        "model_args": options | _size_options(name, image_size),
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "interpolation": "bicubic",
            "crop_pct": crop,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": list(FINETUNE_STD),
            "num_classes": classes,
            "classifier": names if len(names) > 1 else names[0],
        },
    }


def read_weights(path):
    """{key: tensor} from a run folder, a checkpoint of this project or of others, or a `.safetensors` file. Raises ValueError."""
    path = Path(path)
    if path.is_dir():
        path = next(
            (f for f in (path / "backbone.safetensors", path / "model.safetensors") if f.exists()),
            path / "backbone.safetensors",
        )
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; name a run folder of a finished training, a checkpoint or a .safetensors file"
        )
    if path.suffix == ".safetensors":
        return load_file(str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}); a .safetensors file is safer"
        ) from error
    weights = state.get("model", state.get("state_dict", state))
    ours = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    return ours | {k: v for k, v in weights.items() if k.startswith("head.")} if ours else weights


def load_backbone(backbone, path, head=None):
    """Load weights from a run folder, a checkpoint or a `.safetensors` file into `backbone`; returns how many tensors came.

    Position embeddings, and the tables of relative ones of Swin and BEiT, are resampled (bicubic, as timm does) where the resolution differs;
    everything else must agree by name and shape. timm's own files of pretrained weights will do too. Nothing is unpickled but plain tensors.
    head: the linear layer that gets the classifier of the file, which must be there and for as many classes; None: it is left out. Raises ValueError.
    """
    weights = read_weights(path)
    own = backbone.state_dict()
    for key in (k for k in own if k in weights and own[k].shape != weights[k].shape):
        found, wanted = weights[key], own[key].shape
        grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
        if key == "pos_embed" and grid and found.ndim == len(wanted) == 3:
            prefix = wanted[1] - math.prod(grid)  # places for class token and registers; not all models have them
            if prefix >= 0 and math.isqrt(max(0, found.shape[1] - prefix)) ** 2 == found.shape[1] - prefix > 0:
                weights[key] = resample_abs_pos_embed(found, new_size=list(grid), num_prefix_tokens=prefix)
        elif (
            key.endswith("relative_position_bias_table")
            and found.ndim == len(wanted) == 2
            and found.shape[1] == wanted[1]
        ):
            attention = backbone.get_submodule(
                key.removesuffix(".relative_position_bias_table")
            )  # Swin: a window over a smaller map
            weights[key] = resize_rel_pos_bias_table(found, attention.window_size, wanted)
    wrong = sorted(k for k in own if k not in weights or own[k].shape != weights[k].shape)
    if wrong:
        key = wrong[0]
        has = (
            f"of shape {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
            if key in weights
            else "not there"
        )
        raise ValueError(
            f"{path} does not fit this model: {len(wrong)} of {len(own)} tensors are missing or of another shape, first '{key}', {has}. "
            f"Use the model.name and model.options that it was trained with, and its model.image_size too where a model can't change that."
        )
    backbone.load_state_dict({k: weights[k] for k in own})
    for key, mine in head.state_dict().items() if head is not None else ():
        found = weights.get(f"{classifier_names(backbone)[0]}.{key}", weights.get(f"head.{key}"))
        if found is None or found.shape != mine.shape:
            has = "no classifier" if found is None else f"a classifier for {found.shape[0]} classes"
            raise ValueError(f"{path} has {has}, and {mine.shape[0]} classes are wanted; leave out model.init_head")
        mine.copy_(found)
    return len(own)
