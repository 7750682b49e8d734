"""All figures of a GPU at once: 4 minutes for DeiT-Tiny on one GPU with 16 cores, by projection.

  train       a real pretraining of 2,040 images at 112 pixels, 256 images a step, from raw pixels: start, compilation,
              epoch boundaries and logging included; from it, what the 800 epochs of the paper take
  step        the step of each of --models, at the same size
  end_to_end  steps of the first of --models on real images, with crops made on the CPU from JPEGs and from raw pixels,
              and made on the GPU

--json is written after each part.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..beton import open_beton, write_beton
from ..beton.read import Beton
from ..config import ConfigError, load_yaml, make_config
from ..config.pretrain import SCHEMA
from ..datasets import Split
from ..files import write_json
from . import end_to_end, step
from .machine import describe_machine
from .paper import RECIPES, measure, pretraining_part, train_part
from .photographs import open_betons
from .step_systems import StepSetting

IMAGES, EPOCHS = 2040, 800  # of the pretraining that is projected
MAX_SIDE = 384  # of the images that the pretraining reads: about 256 the shorter one


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py gpu --help`.

    Raises:
        ConfigError: There is no CUDA device, and --small was not given; or there is no model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not args.small:
        raise ConfigError("torch sees no CUDA device here; idmm-fast benchmark step, or end_to_end, measures a CPU")
    models = [name.strip() for name in args.models.split(",") if name.strip()]
    if not models:
        raise ConfigError("--models is empty; give timm's names, e.g. deit_tiny_patch16_224,pvt_v2_b0")
    size, batch = (32, 8) if args.small else (112, 256)
    settings = [StepSetting(name, size, batch, options={"depth": 1} if args.small else {}) for name in models]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "machine": describe_machine(),
        "train": {},
        "step": {},
        "end_to_end": {},
    }

    def found(part: str, name: str, figures: dict[str, Any], text: str) -> None:
        result[part][name] = figures
        result["minutes"] = (time.perf_counter() - args.began) / 60
        if args.json:
            write_json(args.json, result)
        print(f"{text}\n({result['minutes']:.1f} minutes since the start)", flush=True)

    repeats, steps = (1, 1) if args.small else (3, 10)
    with tempfile.TemporaryDirectory() as folder:
        jpg, raw = open_betons(args, Path(folder))
        # Compiled, as the 800 epochs that it stands for: so few steps as here would not be.
        images, epochs = (16, 3) if args.small else (IMAGES, 100)
        figures = measure_training(jpg, settings[0], Path(folder), images, epochs, not args.small)
        found("train", settings[0].model, figures, report_training(figures))
        low = step.lower_precision(device)
        for setting in settings:
            figures = step.measure(setting, repeats, steps, device, low)
            found("step", setting.model, figures, f"{setting.model}\n{step.table(figures)}")
        for what, beton, augment_on in (("jpg", jpg, "cpu"), ("raw", raw, "cpu"), ("device", raw, "device")):
            training = end_to_end.EndToEnd(beton.path, settings[0], 0, 3 * steps, augment_on, device.type)
            figures = end_to_end.measure(training, settings[0], repeats, augment_on)
            found("end_to_end", what, figures, end_to_end.report(figures))
    return result


def measure_training(
    jpg: Beton, setting: StepSetting, folder: Path, images: int, epochs: int, compiled: bool = True
) -> dict[str, Any]:
    """Pretrain for real, and tell what the paper's pretraining takes by it.

    Args:
        jpg: JPEGs; they are repeated where they are fewer.
        setting: What is trained.
        folder: Where the images, as raw pixels, and the run go.
        images: How many images.
        epochs: How many epochs.
        compiled: Whether the network is compiled.

    Returns:
        What paper.measure gives, and "projected_minutes": of EPOCHS epochs of IMAGES images at the measured rate, and
        what this training took beyond that rate: start, compilation, the end.
    """
    rows = np.resize(np.arange(len(jpg)), images)
    pictures = [bytes(jpg.bytes[jpg.ptr[row] : jpg.ptr[row] + jpg.length[row]]) for row in rows]
    split = Split(pictures, [0] * images, ["all"])
    path = write_beton(
        folder / "train.beton", split, dataset="bench", name="train", mode="raw", max_resolution=MAX_SIDE, quiet=True
    ).path
    values = {
        "data.train": str(open_beton(path).path),
        "model.name": setting.model,
        "model.options": setting.options,
        "model.image_size": setting.size,
        "training.epochs": epochs,
        "training.batch_size": setting.batch,
        "training.compile": compiled,
        "logging.run_dir": str(folder / "run"),
    }
    part = pretraining_part(make_config(SCHEMA, load_yaml(SCHEMA, RECIPES / "base/pretrain.yaml") | values))
    call: dict[str, Any] = {}
    began = time.perf_counter()
    train_part(part, call)
    call["seconds"] = time.perf_counter() - began
    figures = measure(part, [call])
    beyond = call["seconds"] - epochs * images / figures["images_per_s"]
    return figures | {"projected_minutes": (EPOCHS * IMAGES / figures["images_per_s"] + max(0.0, beyond)) / 60}


def report_training(figures: dict[str, Any]) -> str:
    """The figures of a training in words."""
    return (
        f"{figures['model']} at {figures['image_size']}: {figures['epochs']} epochs of {figures['images']:,} images in "
        f"{figures['minutes']:.2f} minutes, {figures['compile_minutes']:.2f} of them compiling; "
        f"{figures['images_per_s']:,.0f} images/s, {figures['data_wait']:.1%} waited for data, "
        f"{figures['share_of_mm']:.0%} of torch.mm\n"
        f"projected to {EPOCHS} epochs of {IMAGES:,} images: {figures['projected_minutes']:.1f} minutes"
    )
