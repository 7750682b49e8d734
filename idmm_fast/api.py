"""The same work from Python: images in; a pretrained network, its features, or a classifier out.

import idmm_fast
run = idmm_fast.pretrain("my_images/", out="runs/mine")
features, files = idmm_fast.embed("my_images/", checkpoint=run, out="features.npz")
result = idmm_fast.finetune("my_images/", out="runs/mine_tuned", init=run)
"""

import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import yaml


def _bytes(text):
    """Text with names of files in it, to the names' own bytes in any locale."""
    return text.encode("utf-8", "surrogateescape")


def _printable(text):
    """The same, so that any terminal takes it."""
    return (
        _bytes(text)
        .decode("utf-8", "replace")
        .encode(sys.stdout.encoding or "utf-8", "replace")
        .decode(sys.stdout.encoding or "utf-8")
    )


def convert(data):
    """The betons of `data`: {"train": path, and "test" if there is one}.

    data: a beton, or a folder of images: FOLDER/CLASS/*, FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or images without classes. A
    folder is converted once, and again when its files change; the betons are kept under ~/.cache/idmm_fast, or where the environment
    variable IDMM_FAST_CACHE says (without either, in a temporary folder), and beside each is a .txt with the file of every row. While another process
    converts the same folder, this one waits for it. Raises DatasetError, WriteError.
    """
    from .beton import write_beton
    from .datasets import folder
    from .limits import cache_folder
    from .lock import Lock

    data = Path(data)
    if data.suffix == ".beton":
        return {"train": data}
    splits = folder.load(data)
    seen = hashlib.sha256(_bytes(str(data.resolve())))
    for split in splits.values():
        for path in split.images:
            state = path.stat()
            seen.update(_bytes(f"{path} {state.st_size} {state.st_mtime_ns}\n"))
    target = cache_folder() / f"{data.resolve().name}-{seen.hexdigest()[:12]}"
    betons = {name: target / f"{name}.beton" for name in splits}

    def missing():
        return [name for name, beton in betons.items() if not (beton.exists() and beton.with_suffix(".txt").exists())]

    if missing():
        target.mkdir(parents=True, exist_ok=True)
        with Lock(target / ".lock", str(target), wait=True):
            for name in missing():  # perhaps none, after waiting for another process
                split = splits[name]
                written = write_beton(betons[name], split, dataset="folder", name=name)
                draft = betons[name].with_suffix(".txt.tmp")
                draft.write_bytes(_bytes("".join(f"{split.images[place]}\n" for place in written.places)))
                draft.replace(betons[name].with_suffix(".txt"))
                skipped = f", {len(written.skipped)} skipped" if written.skipped else ""
                print(_printable(f"{betons[name]}: {written.count} images of {data}{skipped}"))
    return betons


def _values(sections):
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def _model(model):
    """The `model` section, or its name alone, as values of the configuration."""
    return _values({"model": {"name": model} if isinstance(model, str) else model})


def _model_of(run):
    """The `model` section of the run that `run` (a run folder, or a file in it) belongs to, or {}."""
    from .config.load import find_run_config

    found = find_run_config(run)
    return yaml.safe_load(found.read_text(encoding="utf-8"))["model"] if found else {}


def pretrain(data, out, model="deit_tiny_patch16_224", epochs=800, **sections):
    """Pretrain on images alone, and return the run folder (Path), with backbone.safetensors in it. Called again, it goes on; when images were
    added, taken away or changed meanwhile, the folder is renamed, and a new run begins.

    data: a folder or a beton, see `convert`. out: the run folder. model: timm's name, or a T2T-ViT; or all of that section,
    {"name": ..., "image_size": 64, "options": {"depth": 6}}. sections: any other key of `train_idmm.py --help`, a dict a section:
    training={"batch_size": 64}, cutmix={"alpha": 0}. Raises what the script reports.
    """
    from .config import build
    from .evaluate.frozen import OnlineEvaluation
    from .train import pretraining as training

    betons = convert(data)
    test = betons.get("test")
    values = {
        "data.train": str(betons["train"]),
        "data.test": test and str(test),
        "training.epochs": epochs,
        "training.resume": "auto",
        "logging.run_dir": str(out),
    }
    cfg = build(training.SCHEMA, values | _model(model) | _values(sections))
    return _begun_anew_for_other_images(out, lambda: training.pretrain(cfg, OnlineEvaluation(cfg)))


def finetune(data, out, init=None, test=None, model=None, epochs=200, **sections):
    """Fine-tune with labels. Returns {"top1", "top5", ...}, percent on the test images after the last epoch.

    data: a folder with train/ and test/, or a beton, and then `test` is the other one. init: the run of a pretraining, whose model it
    (name and options) is taken unless `model` says otherwise; None: random weights. sections: as for `pretrain`, keys of `finetune.py --help`.
    """
    from .config import build
    from .train import finetuning as training

    betons = convert(data)
    test = test or betons.get("test")
    known = (
        {k: v for k, v in _model_of(init).items() if k in ("name", "options")}
        if init
        else {"name": "deit_tiny_patch16_224"}
    )
    values = {
        "data.train": str(betons["train"]),
        "data.test": test and str(test),
        "training.epochs": epochs,
        "training.resume": "auto",
        "logging.run_dir": str(out),
        "model.init": init and str(init),
    }
    cfg = build(training.SCHEMA, values | _model(known) | _model(model or {}) | _values(sections))
    return _begun_anew_for_other_images(out, lambda: training.finetune(cfg))


def _begun_anew_for_other_images(out, train):
    """What `train()` gives. Where the run folder `out` was begun with other images, it is renamed first, and the run is a new one."""
    from .train.run_dir import OtherImages

    try:
        return train()
    except OtherImages:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the folder is not one process's to rename
            raise
    out = Path(out)
    before = next(p for k in itertools.count(1) if not (p := out.with_name(f"{out.name}_before_{k}")).exists())
    out.rename(before)
    print(f"{out} was begun with other images or labels: it is now {before}, and a new run begins")
    return train()


def _network(checkpoint, image_size=None):
    """(backbone, image size) of the run that `checkpoint` (a run folder, or a file in it) belongs to; no weights are loaded yet. Raises ConfigError."""
    from .config import ConfigError
    from .models import create_backbone

    model = _model_of(checkpoint)
    if not model:
        raise ConfigError(
            f"{checkpoint} is no run folder, nor a file in one: there is no config.yaml to say which model it is"
        )
    size = image_size or model["image_size"]
    return create_backbone(model["name"], size, 0.0, model["options"]), size


def embed(data, checkpoint, out=None, image_size=None, batch_size=256):
    """Features of every training image under the frozen network of a run: (float32 (n, d), their files or [] for a beton of others).

    out: .npz (arrays features, labels, files) or .csv (file, label, then d numbers a line), or None. image_size: default the run's.
    """
    from types import SimpleNamespace

    from .beton import open_beton
    from .config import ConfigError
    from .evaluate.features import extract
    from .models import load_backbone
    from .runtime.device import choose

    out = out and Path(out)
    if out and out.suffix not in (".npz", ".csv"):
        raise ConfigError(f"out is a file that ends in .npz or .csv, not {out}")
    backbone, size = _network(checkpoint, image_size)
    load_backbone(backbone, checkpoint)
    beton = open_beton(convert(data)["train"])
    machine = choose(SimpleNamespace(device="auto", amp="auto", channels_last="auto", compile=False), 0)
    features = extract(machine.place(backbone), beton.path, size, machine, batch_size)[0].numpy()
    listed = Path(beton.path).with_suffix(".txt")
    files = (
        os.fsdecode(listed.read_bytes()).split("\n")[:-1] if Path(data).suffix != ".beton" and listed.exists() else []
    )
    if out and out.suffix == ".npz":
        np.savez(out, features=features, labels=beton.label, files=np.array(files))
    elif out:
        with open(out, "w", encoding="utf-8", errors="surrogateescape") as file:
            for row, vector in enumerate(features):
                name = files[row] if files else str(row)
                file.write(
                    ",".join(
                        ['"' + name.replace('"', '""') + '"', str(beton.label[row]), *(f"{x:.7g}" for x in vector)]
                    )
                    + "\n"
                )
    return features, files


def export(checkpoint, out):
    """Write the network of a run as ONNX, for other programs: `images`, uint8 (n, 3, S, S) of levels 0..255, RGB, n as you like, to `features` (n, d) of a
    pretraining, or `logits` (n, classes) of a fine-tuning. Normalisation is inside. Needs `pip install -e '.[onnx]'`. Raises ConfigError, ValueError.
    """
    import torch

    from .config import ConfigError
    from .config.load import find_run_config
    from .models import Normalize, feature_dim, init_head, load_backbone
    from .models.backbone import PRETRAIN_STD
    from .train.finetuning import Classifier

    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise ConfigError("ONNX needs two more packages: pip install -e '.[onnx]'") from None
    backbone, size = _network(checkpoint)
    tuned = find_run_config(checkpoint).with_name("config.json")
    if tuned.is_file():  # a fine-tuning, with its classifier
        head = init_head(feature_dim(backbone), json.loads(tuned.read_text(encoding="utf-8"))["num_classes"])
        load_backbone(backbone, checkpoint, head)
        network, name = Classifier(backbone, head), "logits"
    else:
        load_backbone(backbone, checkpoint)
        network, name = torch.nn.Sequential(Normalize(std=PRETRAIN_STD), backbone), "features"
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    torch.onnx.export(
        network.eval(),
        (example,),
        str(out),
        input_names=["images"],
        output_names=[name],
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        verbose=False,
    )
    return Path(out)
