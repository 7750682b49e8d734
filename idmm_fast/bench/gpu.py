"""All figures of a GPU at once, in under 8 minutes on one GPU with 16 cores.

The step of three backbones at 112 pixels, 256 images a step; training on real images with crops made on the CPU from
JPEGs and from raw pixels, and made on the GPU; three rounds each. The last figure is the best measured rate of
`end_to_end` projected to the 800 epochs of 2,040 images of the pretraining on Flowers.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from . import end_to_end, step
from .machine import describe_machine
from .photographs import open_betons
from .step_systems import StepSetting

IMAGES = 2040 * 800  # of the pretraining that is projected
BACKBONES = ("deit_tiny_patch16_224", "pvt_v2_b0", "t2t_vit_t_14")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py gpu --help`.

    Raises:
        ValueError: There is no CUDA device, and --small was not given.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not args.small:
        raise ValueError(
            "torch sees no CUDA device here; `benchmark.py step` and `benchmark.py end_to_end` measure a CPU"
        )
    began = time.perf_counter()
    low = step.lower_precision(device)
    size, batch, steps, repeats = (32, 4, 1, 1) if args.small else (112, 256, 10, 3)
    options = {"depth": 1} if args.small else {}
    settings = [
        StepSetting(name, size, batch, options=options) for name in (BACKBONES[:1] if args.small else BACKBONES)
    ]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "machine": describe_machine(),
        "step": {},
        "end_to_end": {},
    }
    for setting in settings:
        found = step.measure(setting, repeats, steps, device, low)
        result["step"][setting.model] = found
        print(f"{setting.model}\n{step.table(found)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jpg, raw = open_betons(args, Path(folder))
        for what, beton, augment_on in (("jpg", jpg, "cpu"), ("raw", raw, "cpu"), ("device", raw, "device")):
            training = end_to_end.EndToEnd(beton.path, settings[0], 0, 3 * steps, augment_on, device.type)
            found = end_to_end.measure(training, settings[0], repeats, augment_on)
            result["end_to_end"][what] = found
            print(end_to_end.report(found), flush=True)
    fastest = max(found["images_per_s"]["real"] for found in result["end_to_end"].values())
    result |= {"flowers_800_epochs_minutes": IMAGES / fastest / 60, "minutes": (time.perf_counter() - began) / 60}
    print(
        f"800 epochs of 2,040 images at this rate: {result['flowers_800_epochs_minutes']:.1f} minutes "
        f"(all of this took {result['minutes']:.1f})"
    )
    if args.json:
        write_json(args.json, result)
    return result
