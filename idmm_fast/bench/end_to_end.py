"""Training on real images against training on batches that are there already, and loading alone: what loading costs.

  synthetic  steps on one batch that lies on the device
  loading    the loader alone, all of its threads
  real       steps on the loader's batches
Each in turn in a round, timed over `steps` steps after the first few, while the loader goes on making batches. Where a GPU computes, real should
take what synthetic takes; on the CPU, which both share, the sum of the two and no more.
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from ..beton import open_beton
from ..beton.format import RAW
from ..loader import IDMM_VIEWS, MultiCropLoader
from ..loader.gpu import DeviceLoader
from ..methods import IDMM
from ..models import create_backbone
from ..runtime.device import prefetch_to_device, resolve_runtime
from .loader import betons
from .loader import machine as describe
from .step import stepper, wait_for

AHEAD = 4  # steps before the clock is started, and batches that are left when it is stopped


def measure(beton, name, size, batch, workers, repeats, steps, device="auto", options=None, views_on="cpu"):
    """{"seconds_per_step": {"synthetic", "loading", "real"}, "lost": share of real's time that synthetic does not take, ...}, medians of `repeats`."""
    rows = np.resize(
        np.arange(len(open_beton(beton))), (steps + 2 * AHEAD) * batch
    )  # over and over, so that an epoch is long enough
    machine = resolve_runtime(SimpleNamespace(device=device, amp="auto", channels_last="auto", compile="auto"), 10**6)
    where = {"device": machine.device, "compile": machine.compile} if views_on == "device" else {}
    views = [replace(view, size=size) for view in IDMM_VIEWS]
    loader = (DeviceLoader if where else MultiCropLoader)(beton, batch, workers, views=views, rows=rows, **where)
    torch.manual_seed(0)
    model = machine.to_device(IDMM(create_backbone(name, size, 0.1, options), len(loader.beton), 0.1)).train()
    train = stepper(machine.prepare(model), model, machine)

    def batches():
        return prefetch_to_device(loader, machine.device)

    def step(groups):
        train(list(map(list, zip(*groups))))

    held = [tuple(t.clone() for t in group) for group in next(batches())]
    loader.close()

    def timed(source, work):
        for _ in range(AHEAD):
            work(next(source))
        wait_for(machine.device)
        began, waited = time.perf_counter(), loader.waited
        for _ in range(steps):
            work(next(source))
        wait_for(machine.device)
        return (time.perf_counter() - began) / steps, (loader.waited - waited) / steps

    def synthetic():
        while True:
            yield held

    systems = {"synthetic": (synthetic, step), "loading": (batches, lambda groups: None), "real": (batches, step)}
    for _ in range(2):
        step(held)
    seconds, waits = {what: [] for what in systems}, []
    for _ in tqdm(range(repeats), desc="rounds"):
        for what, (make, work) in systems.items():
            took, waited = timed(make(), work)
            loader.close()
            seconds[what].append(took)
            if what == "real":
                waits.append(waited / took)
    rounds = list(zip(*seconds.values()))
    return {
        "model": name,
        "image_size": size,
        "batch": batch,
        "workers": loader.num_workers,
        "images": len(loader.beton),
        "views_on": views_on,
        "mode": "raw" if (loader.beton.mode == RAW).all() else "jpg",
        "steps": steps,
        "rounds": repeats,
        "machine_chosen": str(machine),
        "seconds_per_step": {what: statistics.median(s) for what, s in seconds.items()},
        "images_per_s": {what: batch / statistics.median(s) for what, s in seconds.items()},
        "lost": statistics.median(1 - s / r for s, _, r in rounds),
        "real / sum": statistics.median(r / (s + l) for s, l, r in rounds),
        "waiting": statistics.median(waits),
    }


def report(result):
    """The figures in words."""
    rates = result["images_per_s"]
    return (
        f"{result['model']} at {result['image_size']}, {result['batch']} images a step, {result['workers']} loader threads, {result['mode']}, "
        f"views made on the {result['views_on']}; "
        f"{result['machine_chosen']}\n"
        f"images/s: real {rates['real']:,.1f}, synthetic {rates['synthetic']:,.1f}, loading alone {rates['loading']:,.1f}\n"
        f"lost to loading: {result['lost']:.1%} (waiting for data: {result['waiting']:.1%} of the time)\n"
        f"real / (synthetic + loading): {result['real / sum']:.2f}"
    )


def run(args):
    """Measure and print; see `benchmark.py end_to_end --help`."""
    with tempfile.TemporaryDirectory() as folder:
        jpg, raw = betons(args, Path(folder))
        beton = (jpg if args.mode == "jpg" else raw).path
        result = measure(
            beton,
            args.model,
            args.size,
            args.batch,
            args.workers,
            args.repeats,
            args.steps,
            options=args.options,
            views_on=args.views_on,
        )
    result["machine"] = describe()
    print(report(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result
