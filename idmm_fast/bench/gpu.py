"""All figures of a GPU in one go: the step of three backbones, training on real images, loading with all cores, and what the 800 epochs on Flowers would take.

Written for under 8 minutes on one GPU with 16 cores. The last figure is the measured rate of `end_to_end` times the images of that pretraining, 2,040 x 800.
"""

import json
import tempfile
import time
from pathlib import Path

import torch

from . import end_to_end, step
from .loader import betons, machine

IMAGES = 2040 * 800  # of the pretraining that is projected


def run(args):
    """Measure and print; see `benchmark.py gpu --help`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not args.small:
        raise ValueError(
            "torch sees no CUDA device here; `benchmark.py step` and `benchmark.py end_to_end` measure a CPU"
        )
    began = time.perf_counter()
    low = step.lower_precision(device)
    models = ["deit_tiny_patch16_224"] if args.small else ["deit_tiny_patch16_224", "pvt_v2_b0", "t2t_vit_t_14"]
    size, batch, steps, repeats = (32, 4, 1, 1) if args.small else (112, 256, 10, 3)
    options = {"depth": 1} if args.small else None
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "machine": machine(),
        "step": {},
        "end_to_end": {},
    }
    for name in models:
        result["step"][name] = step.measure(name, size, batch, 2040, repeats, steps, device, low, options)
        print(f"{name}\n{step.table(result['step'][name])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jpg, raw = betons(args, Path(folder))
        for what, beton, views_on in (("jpg", jpg, "cpu"), ("raw", raw, "cpu"), ("device", raw, "device")):
            found = end_to_end.measure(
                beton.path, models[0], size, batch, 0, repeats, 3 * steps, device.type, options, views_on
            )
            result["end_to_end"][what] = found
            print(end_to_end.report(found), flush=True)
    fastest = max(found["images_per_s"]["real"] for found in result["end_to_end"].values())
    result |= {"flowers_800_epochs_minutes": IMAGES / fastest / 60, "minutes": (time.perf_counter() - began) / 60}
    print(
        f"800 epochs of 2,040 images at this rate: {result['flowers_800_epochs_minutes']:.1f} minutes (all of this took {result['minutes']:.1f})"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result
