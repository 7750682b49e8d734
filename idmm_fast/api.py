"""The same work from Python: images in; a pretrained network, its features, a classifier, or predictions out.

import idmm_fast
run = idmm_fast.pretrain("my_images/", out="runs/mine", config="own")
features, files = idmm_fast.embed("my_images/", checkpoint=run, out="features.npz")
result = idmm_fast.finetune("my_images/", out="runs/mine_finetune", init=run, config="own")
rows = idmm_fast.predict("new_images/", checkpoint="runs/mine_finetune", out="predictions.csv")
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from .config import ConfigError, check_files, keys, laid_over, load_yaml, make_config, model_of, packaged_config
from .config import finetune as finetune_config
from .config import pretrain as pretrain_config
from .config.load import Schema, nearest_key
from .convert import STAND_INS, TEST_SHARE, convert, listed_files
from .files import check_target, first_free, replacing

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MODEL = "deit_tiny_patch16_224"

Result = TypeVar("Result")


def pretrain(
    data: str | Path,
    out: str | Path,
    model: str | Mapping[str, Any] | None = None,
    epochs: int | None = None,
    init: str | Path | None = None,
    config: str | Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> Path:
    """Pretrain on images alone.

    Called again, it resumes. When images were added, taken away or changed meanwhile, or `init` has other weights, the
    old run folder is renamed, and a new run begins.

    Args:
        data: a folder or a .beton file, see `convert`.
        out: the run folder.
        model: timm's name, or a T2T-ViT's; or all of the section `model`, {"name": ..., "image_size": 64, "options":
            {"depth": 6}}. What it leaves out is that of `config`. None: the model of `config`; deit_tiny_patch16_224
            where that names none.
        epochs: passes over the data. None: what `config` says (epochs, or minutes), 800 without one.
        init: weights to start from, of the same model: a run folder, a checkpoint, a .safetensors file, or timm:NAME;
            None: random weights.
        config: a YAML file below all this, or the name of one in rn_configs/: "own" is the recommended recipe, for 20
            minutes. None: the paper's recipe.
        data_options: keys of the section `data`: {"num_workers": 2}.
        sections: keys of the other sections of `train_idmm.py --help`, a dict a section: training={"batch_size": 64},
            cutmix={"alpha": 0}.

    Returns:
        The run folder, with backbone.safetensors in it.

    Raises:
        ConfigError, and whatever else `train_idmm.py` reports.
    """

    def configured(betons: Mapping[str, Path]) -> SimpleNamespace:
        values = load_yaml(pretrain_config.SCHEMA, packaged_config(str(config))) if config else {}
        values = laid_over(values, _run_values(betons["train"], betons.get("test"), out, epochs))
        values |= {"model.init": str(init) if init else None}
        values = {"model.name": DEFAULT_MODEL} | values | _values({"model": _section(model)}, pretrain_config.SCHEMA)
        given = _values({**sections, "data": data_options or {}}, pretrain_config.SCHEMA)
        cfg = make_config(pretrain_config.SCHEMA, laid_over(values, given))
        check_files(cfg)
        pretrain_config.check(cfg)
        return cfg

    configured(STAND_INS)  # mistakes are told before a conversion, which may take long
    cfg = configured(convert(data))

    def train() -> Path:
        from .evaluate.online import OnlineEvaluation
        from .train import pretraining

        return pretraining.pretrain(cfg, OnlineEvaluation(cfg))

    return _restart_for_other_inputs(out, train)


def finetune(
    data: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    test: str | Path | None = None,
    model: str | Mapping[str, Any] | None = None,
    epochs: int | None = None,
    config: str | Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Fine-tune with labels. Called again, it resumes, as `pretrain` does.

    Args:
        data: a folder, or a .beton file. Where the folder has no test split, a fifth of each class is held out. A
            validation split beside a test split chooses the epoch whose weights are kept.
        out: the run folder.
        init: the run folder of a pretraining, a checkpoint, a .safetensors file, or timm:NAME; None: random weights.
        test: the .beton file to test on, where `data` is one too.
        model: as for `pretrain`. None: the model (name and options) of `init`, whatever `config` names, so that
            config="own" fine-tunes a run of any model; that of `config` where `init` is None or does not say.
        epochs: passes over the data. None: what `config` says, 200 without one.
        config: a YAML file below all this, or the name of one in rn_configs/finetune/; None: the paper's recipe.
        data_options: keys of the section `data`: {"per_class": 10}.
        sections: keys of the other sections of `finetune.py --help`, a dict a section.

    Returns:
        {"top1", "top5", ...}, percent on the test images, see train.finetuning.finetune.

    Raises:
        ConfigError, and whatever else `finetune.py` reports.
    """

    def configured(betons: Mapping[str, Path]) -> SimpleNamespace:
        section, val = _section(model), betons.get("val")
        values = load_yaml(finetune_config.SCHEMA, packaged_config(str(config), "finetune")) if config else {}
        values = laid_over(values, _run_values(betons["train"], test or betons.get("test"), out, epochs))
        values |= {"model.init": str(init) if init else None, "data.val": str(val) if val else None}
        values = {"model.name": DEFAULT_MODEL} | values | ({} if "name" in section else model_of(values["model.init"]))
        values |= _values({"model": section}, finetune_config.SCHEMA)
        given = _values({**sections, "data": data_options or {}}, finetune_config.SCHEMA)
        cfg = make_config(finetune_config.SCHEMA, laid_over(values, given))
        check_files(cfg)
        finetune_config.check(cfg)
        return cfg

    configured(STAND_INS)  # mistakes are told before a conversion, which may take long
    cfg = configured(convert(data, test_share=0.0 if test else TEST_SHARE))

    def train() -> dict[str, Any]:
        from .train import finetuning

        return finetuning.finetune(cfg)

    return _restart_for_other_inputs(out, train)


def embed(
    data: str | Path,
    checkpoint: str | Path,
    out: str | Path | None = None,
    image_size: int | None = None,
    batch_size: int = 256,
) -> tuple[np.ndarray, list[str]]:
    """Features of every training image under the frozen network of a run, with the precision of its own evaluation.

    Args:
        data: a folder or a .beton file, see `convert`.
        checkpoint: a run folder, or a file in it.
        out: a .npz file (arrays features, labels, files) or a .csv file (file, label, then d numbers a line) to write.
        image_size: side of the input in pixels; None: the run's.
        batch_size: images at a time.

    Returns:
        (float32 (n, d), the n files of the images). The files are [] where `data` is a .beton file
        that was not converted from a folder here.

    Raises:
        ConfigError: for another suffix of `out`, a checkpoint that is in no run folder, or an image_size below 1.
        OSError: `out` can't be written.
    """
    from .beton import open_beton
    from .evaluate import EvaluationImages, extract
    from .models import load_trained

    if out and Path(out).suffix not in (".npz", ".csv"):
        raise ConfigError(f"out is a file that ends in .npz or .csv, not {out}")
    if out:
        check_target(out)
    trained = load_trained(checkpoint, image_size, features=True)
    normalize, backbone = trained.network.children()
    beton = open_beton(convert(data)["train"])
    runtime = trained.runtime()
    images = EvaluationImages(beton.path, trained.size, batch_size)
    features = extract(runtime.to_device(backbone), images, runtime, normalize)[0].numpy()
    files = listed_files(beton.path)
    if out:
        _write_features(Path(out), features, beton.label, files)
    return features, files


def predict(
    images: str | Path | Sequence[str | Path],
    checkpoint: str | Path,
    out: str | Path | None = None,
    topk: int = 5,
    flip: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """The classes of images under a fine-tuned network. Nothing is converted; the pixels are those of evaluation.

    Args:
        images: files, or folders of them; one, or a list.
        checkpoint: the run folder of a fine-tuning, or a checkpoint in it.
        out: a .csv, .json or .parquet file to write.
        topk: how many classes for each image.
        flip: whether probabilities are averaged with those of the mirror image.
        options: device ("auto", "cpu", "cuda"), batch_size, num_workers.

    Returns:
        For each image {"file", "label", "probability", "top": [(label, probability), ...], "error"}; "label" is the
        likeliest class. Of an image that can't be read "label" is None, and "error" says why.

    Raises:
        ConfigError: there is no image, none can be read, or the run has no classifier.
        OSError: `out` can't be written.
        ValueError: its weights can't be read.
    """
    from .evaluate.predict import PredictOptions, predict_files
    from .evaluate.prediction_files import as_rows, check_table, write_predictions

    if out:
        check_table(out)
    paths = [images] if isinstance(images, str | os.PathLike) else images
    found = predict_files(checkpoint, paths, PredictOptions(topk, flip, **options))
    if out:
        write_predictions(found, out)
    return list(as_rows(found))


def export(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the network of a run as ONNX, for other programs. Normalisation is inside.

    Its input is `images`, uint8 (n, 3, S, S) of levels 0..255, RGB, for any n. Its output is `features` (n, d) of a
    pretraining, or `logits` (n, classes) of a fine-tuning, whose classes are in the metadata, "label_names", as JSON.
    Needs `pip install onnx onnxscript`.

    Args:
        checkpoint: a run folder, or a file in it.
        out: the file to write.

    Returns:
        `out` as a Path.

    Raises:
        ConfigError: if the packages are missing, or the checkpoint is in no run folder.
        OSError: if `out` can't be written.
        ValueError: if its weights do not fit.
    """
    import torch

    from .models import load_trained

    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise ConfigError("ONNX needs two more packages: pip install onnx onnxscript") from None
    check_target(out)
    trained = load_trained(checkpoint)
    with replacing(out) as draft:
        torch.onnx.export(
            trained.network,
            (torch.zeros(2, 3, trained.size, trained.size, dtype=torch.uint8),),
            str(draft),
            input_names=["images"],
            output_names=["logits" if trained.label_names else "features"],
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            verbose=False,
        )
        if trained.label_names:
            model = onnx.load(str(draft))
            onnx.helper.set_model_props(model, {"label_names": json.dumps(trained.label_names)})
            onnx.save(model, str(draft))
    return Path(out)


def _values(sections: Mapping[str, Mapping[str, Any]], schema: Schema) -> dict[str, Any]:
    """{"section.key": value} of {section: {key: value}}; ConfigError for an argument that is no section."""
    for name, given in sections.items():
        if not isinstance(given, Mapping) and name in schema:
            raise ConfigError(f"{name} is a dict of keys, like training={{'minutes': 20}}, not {given!r}")
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"there is no argument '{name}'. {nearest_key(name, keys(schema))}A section of keys is a dict, like "
                f"training={{'minutes': 20}}"
            )
    return {f"{section}.{key}": value for section, given in sections.items() for key, value in given.items()}


def _section(model: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The section `model`, of itself or of the model's name alone; {} of None."""
    return {"name": model} if isinstance(model, str) else model or {}


def _run_values(train: Path, test: str | Path | None, out: str | Path, epochs: int | None) -> dict[str, Any]:
    """What both trainings set, as values of the configuration."""
    return {
        "data.train": str(train),
        "data.test": str(test) if test else None,
        **({"training.epochs": epochs} if epochs is not None else {}),
        "training.resume": "auto",
        "logging.run_dir": str(out),
    }


def _restart_for_other_inputs(out: str | Path, train: Callable[[], Result]) -> Result:
    """What `train()` returns. A run folder `out` that started with other images or weights is renamed first."""
    from .train.run_dir import OtherInputs

    try:
        return train()
    except OtherInputs:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the folder is not one process's to rename
            raise
    before = first_free(Path(out).with_name(f"{Path(out).name}_before"))
    Path(out).rename(before)
    print(f"{out} was started with other images, labels or weights: it is now {before}, and a new run starts")
    return train()


def _write_features(out: Path, features: np.ndarray, labels: np.ndarray, files: Sequence[str]) -> None:
    """Write features as .npz or .csv, see `embed`."""
    import numpy as np

    if out.suffix == ".npz":
        with replacing(out) as draft, open(draft, "wb") as npz:
            np.savez(npz, features=features, labels=labels, files=np.array(files, str))
        return
    with replacing(out) as draft, open(draft, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        # All names are quoted, since before Python 3.13 the default does not quote one with a \r in it.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        for row, vector in enumerate(features):
            name = files[row] if files else str(row)
            writer.writerow([name, int(labels[row]), *(float(f"{x:.7g}") for x in vector)])
