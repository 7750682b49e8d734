"""The same work from Python: images in; a pretrained network, its features, or a classifier out.

import idmm_fast
run = idmm_fast.pretrain("my_images/", out="runs/mine")
features, files = idmm_fast.embed("my_images/", checkpoint=run, out="features.npz")
result = idmm_fast.finetune("my_images/", out="runs/mine_tuned", init=run)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from .config import ConfigError, find_run_config, make_config
from .config import finetune as finetune_config
from .config import pretrain as pretrain_config
from .convert import convert
from .files import first_free

if TYPE_CHECKING:
    import numpy as np
    import torch

DEFAULT_MODEL = "deit_tiny_patch16_224"

Result = TypeVar("Result")


def pretrain(
    data: str | Path,
    out: str | Path,
    model: str | Mapping[str, Any] = DEFAULT_MODEL,
    epochs: int = 800,
    **sections: Mapping[str, Any],
) -> Path:
    """Pretrain on images alone.

    Called again, it resumes. When images were added, taken away or changed meanwhile, the old run folder is renamed,
    and a new run begins.

    Args:
        data: a folder or a .beton file, see `convert`.
        out: the run folder.
        model: timm's name, or a T2T-ViT's; or all of the section `model`, {"name": ..., "image_size": 64, "options":
            {"depth": 6}}.
        epochs: passes over the data.
        sections: other keys of `train_idmm.py --help`, a dict a section: training={"batch_size": 64},
            cutmix={"alpha": 0}.

    Returns:
        The run folder, with backbone.safetensors in it.

    Raises:
        ConfigError, and whatever else `train_idmm.py` reports.
    """
    betons = convert(data)
    values = _run_values(betons["train"], betons.get("test"), out, epochs) | _values({"model": _section(model)})
    cfg = make_config(pretrain_config.SCHEMA, values | _values(sections))

    def train() -> Path:
        from .evaluate.online import OnlineEvaluation
        from .train import pretraining

        return pretraining.pretrain(cfg, OnlineEvaluation(cfg))

    return _restart_for_other_images(out, train)


def finetune(
    data: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    test: str | Path | None = None,
    model: str | Mapping[str, Any] | None = None,
    epochs: int = 200,
    **sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Fine-tune with labels. Called again, it resumes, as `pretrain` does.

    Args:
        data: a folder with train/ and test/, or a .beton file.
        out: the run folder.
        init: the run folder of a pretraining, a checkpoint or a .safetensors file; None: random weights.
        test: the .beton file to test on, where `data` is one too.
        model: as for `pretrain`; None: the model (name and options) of the run `init`.
        epochs: passes over the data.
        sections: other keys of `finetune.py --help`, a dict a section.

    Returns:
        {"top1", "top5", ...}, percent on the test images after the last epoch.

    Raises:
        ConfigError, and whatever else `finetune.py` reports.
    """
    betons = convert(data)
    of_init = {key: value for key, value in _model_of(init).items() if key in ("name", "options")} if init else {}
    known = of_init if init else {"name": DEFAULT_MODEL}
    values = _run_values(betons["train"], test or betons.get("test"), out, epochs)
    values |= {"model.init": str(init) if init else None}
    values |= _values({"model": {**known, **_section(model or {})}}) | _values(sections)
    cfg = make_config(finetune_config.SCHEMA, values)

    def train() -> dict[str, Any]:
        from .train import finetuning

        return finetuning.finetune(cfg)

    return _restart_for_other_images(out, train)


def embed(
    data: str | Path,
    checkpoint: str | Path,
    out: str | Path | None = None,
    image_size: int | None = None,
    batch_size: int = 256,
) -> tuple[np.ndarray, list[str]]:
    """Features of every training image under the frozen network of a run.

    Args:
        data: a folder or a .beton file, see `convert`.
        checkpoint: a run folder, or a file in it.
        out: a .npz file (arrays features, labels, files) or a .csv file (file, label, then d numbers a line) to write.
        image_size: side of the input in pixels; None: the run's.
        batch_size: images at a time.

    Returns:
        (float32 (n, d), the n files of the images). The files are [] where `data` is a .beton file.

    Raises:
        ConfigError: for another suffix of `out`, or a checkpoint that is in no run folder.
    """
    from .beton import open_beton
    from .evaluate import EvaluationImages, extract
    from .models import load_backbone
    from .runtime.device import resolve_runtime

    if out and Path(out).suffix not in (".npz", ".csv"):
        raise ConfigError(f"out is a file that ends in .npz or .csv, not {out}")
    backbone, size = _network(checkpoint, image_size)
    load_backbone(backbone, checkpoint)
    beton = open_beton(convert(data)["train"])
    runtime = resolve_runtime(SimpleNamespace(device="auto", amp="auto", channels_last="auto", compile=False), 0)
    images = EvaluationImages(beton.path, size, batch_size)
    features = extract(runtime.to_device(backbone), images, runtime)[0].numpy()
    listed = Path(beton.path).with_suffix(".txt")
    converted = Path(data).suffix != ".beton" and listed.exists()
    files = os.fsdecode(listed.read_bytes()).split("\n")[:-1] if converted else []
    if out:
        _write_features(Path(out), features, beton.label, files)
    return features, files


def export(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the network of a run as ONNX, for other programs. Normalisation is inside.

    Its input is `images`, uint8 (n, 3, S, S) of levels 0..255, RGB, for any n. Its output is `features` (n, d) of a
    pretraining, or `logits` (n, classes) of a fine-tuning. Needs `pip install -e '.[onnx]'`.

    Args:
        checkpoint: a run folder, or a file in it.
        out: the file to write.

    Returns:
        `out` as a Path.

    Raises:
        ConfigError: if the packages are missing, or the checkpoint is in no run folder.
        ValueError: if its weights do not fit.
    """
    import torch

    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise ConfigError("ONNX needs two more packages: pip install -e '.[onnx]'") from None
    network, size, name = _exported_network(checkpoint)
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, size, size, dtype=torch.uint8),),
        str(out),
        input_names=["images"],
        output_names=[name],
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        verbose=False,
    )
    return Path(out)


def _values(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"section.key": value} of {section: {key: value}}."""
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def _section(model: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The section `model`, of itself or of the model's name alone."""
    return {"name": model} if isinstance(model, str) else model


def _run_values(train: Path, test: str | Path | None, out: str | Path, epochs: int) -> dict[str, Any]:
    """What both trainings set, as values of the configuration."""
    return {
        "data.train": str(train),
        "data.test": str(test) if test else None,
        "training.epochs": epochs,
        "training.resume": "auto",
        "logging.run_dir": str(out),
    }


def _model_of(run: str | Path) -> dict[str, Any]:
    """The section `model` of the run that `run`, a run folder or a file in it, belongs to; {} if there is none."""
    import yaml

    found = find_run_config(run)
    return yaml.safe_load(found.read_text(encoding="utf-8"))["model"] if found else {}


def _restart_for_other_images(out: str | Path, train: Callable[[], Result]) -> Result:
    """What `train()` returns. A run folder `out` that started with other images is renamed first."""
    from .train.run_dir import OtherImages

    try:
        return train()
    except OtherImages:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the folder is not one process's to rename
            raise
    before = first_free(Path(out).with_name(f"{Path(out).name}_before"))
    Path(out).rename(before)
    print(f"{out} was started with other images or labels: it is now {before}, and a new run starts")
    return train()


def _network(checkpoint: str | Path, image_size: int | None = None) -> tuple[torch.nn.Module, int]:
    """(backbone without its weights, image size) of the run that `checkpoint` belongs to. Raises ConfigError."""
    from .models import create_backbone

    model = _model_of(checkpoint)
    if not model:
        raise ConfigError(
            f"{checkpoint} is no run folder, nor a file in one: there is no config.yaml to say which model it is"
        )
    size = image_size or model["image_size"]
    return create_backbone(model["name"], size, 0.0, model["options"]), size


def _exported_network(checkpoint: str | Path) -> tuple[torch.nn.Module, int, str]:
    """(network of uint8 images, image size, what its output is called) of a run."""
    import torch

    from .models import Classifier, Normalize, feature_dim, init_head, load_backbone

    backbone, size = _network(checkpoint)
    run_config = find_run_config(checkpoint)
    tuned = run_config.with_name("config.json") if run_config else None
    if tuned and tuned.is_file():  # a fine-tuning, with its classifier
        head = init_head(feature_dim(backbone), json.loads(tuned.read_text(encoding="utf-8"))["num_classes"])
        load_backbone(backbone, checkpoint, head)
        return Classifier(backbone, head), size, "logits"
    load_backbone(backbone, checkpoint)
    return torch.nn.Sequential(Normalize(pretraining=True), backbone), size, "features"


def _write_features(out: Path, features: np.ndarray, labels: np.ndarray, files: Sequence[str]) -> None:
    """Write features as .npz or .csv, see `embed`."""
    import numpy as np

    if out.suffix == ".npz":
        np.savez(out, features=features, labels=labels, files=np.array(files))
        return
    with open(out, "w", encoding="utf-8", errors="surrogateescape") as file:
        for row, vector in enumerate(features):
            name = (files[row] if files else str(row)).replace('"', '""')
            file.write(",".join([f'"{name}"', str(labels[row]), *(f"{x:.7g}" for x in vector)]) + "\n")
