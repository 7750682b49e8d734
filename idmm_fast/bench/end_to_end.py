"""What loading costs in training: steps on real images against steps on a batch that is there already.

  synthetic  steps on one batch that lies on the device
  loading    the loader alone, all of its threads
  real       steps on the loader's batches

IDMM's six crops of an image, a user's images or crops of scikit-learn's photographs. The three take turns in each
round, each timed over `--steps` steps after the first few, while the loader keeps making batches; figures are medians
over `--repeats` rounds. Where a GPU computes, real should take what synthetic takes; on the CPU, which both share,
their sum.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..beton import open_beton
from ..beton.format import RAW
from ..files import write_json
from ..loader import IDMM_VIEWS, MultiCropLoader
from ..loader.gpu import DeviceLoader
from ..methods import IDMM
from ..models import create_backbone
from ..runtime.device import Runtime, prefetch_to_device, resolve_runtime
from .machine import describe_machine
from .photographs import open_betons
from .step import wait_for
from .step_systems import StepSetting, make_step

AHEAD = 4  # steps before the clock is started, and batches that are left when it is stopped
Groups = list  # the multi-crop groups of a batch, as the loader hands them out


class EndToEnd:
    """A training that can be timed with and without its loader.

    Args:
        beton: What is loaded.
        setting: What is trained.
        workers: Loader threads; 0 for one per core.
        steps: Steps that are timed at once.
        augment_on: "cpu", or "device" for GPU augmentation.
        device: "cpu", "cuda" or "auto".
    """

    def __init__(
        self,
        beton: Path,
        setting: StepSetting,
        workers: int,
        steps: int,
        augment_on: str = "cpu",
        device: str = "auto",
    ) -> None:
        chosen = SimpleNamespace(device=device, amp="auto", channels_last="auto", compile="auto")
        self.runtime, self.steps = resolve_runtime(chosen, 10**6), steps
        self.loader = _make_loader(beton, setting, workers, steps, self.runtime if augment_on == "device" else None)
        torch.manual_seed(0)
        backbone = create_backbone(setting.model, setting.size, 0.1, setting.options or None)
        model = self.runtime.to_device(IDMM(backbone, len(self.loader.beton), 0.1)).train()
        self._train = make_step(self.runtime.prepare(model), model, self.runtime)
        self._held = [tuple(t.clone() for t in group) for group in next(self._batches())]
        self.loader.close()
        for _ in range(2):
            self._step(self._held)

    def round(self) -> dict[str, tuple[float, float]]:
        """{"synthetic", "loading", "real": (seconds a step, of these seconds waited for the loader)}."""
        systems: dict[str, tuple[Callable[[], Iterator[Groups]], Callable[[Groups], None]]] = {
            "synthetic": (self._synthetic, self._step),
            "loading": (self._batches, lambda groups: None),
            "real": (self._batches, self._step),
        }
        found = {}
        for what, (source, work) in systems.items():
            found[what] = self._time(source(), work)
            self.loader.close()
        return found

    def _batches(self) -> Iterator[Groups]:
        return prefetch_to_device(self.loader, self.runtime.device)

    def _synthetic(self) -> Iterator[Groups]:
        while True:
            yield self._held

    def _step(self, groups: Groups) -> None:
        self._train(list(map(list, zip(*groups))))

    def _time(self, source: Iterator[Groups], work: Callable[[Groups], None]) -> tuple[float, float]:
        """Seconds a step, and of these how many the loader was waited for."""
        for _ in range(AHEAD):
            work(next(source))
        wait_for(self.runtime.device)
        began, waited = time.perf_counter(), self.loader.waited
        for _ in range(self.steps):
            work(next(source))
        wait_for(self.runtime.device)
        return (time.perf_counter() - began) / self.steps, (self.loader.waited - waited) / self.steps


def _make_loader(
    beton: Path, setting: StepSetting, workers: int, steps: int, runtime: Runtime | None
) -> MultiCropLoader | DeviceLoader:
    """A loader whose epoch is long enough, over the same images again and again; runtime: for GPU augmentation."""
    rows = np.resize(np.arange(len(open_beton(beton))), (steps + 2 * AHEAD) * setting.batch)
    views = [replace(group, size=setting.size) for group in IDMM_VIEWS]
    if runtime is None:
        return MultiCropLoader(beton, setting.batch, workers, views=views, rows=rows)
    return DeviceLoader(
        beton, setting.batch, workers, views=views, rows=rows, device=runtime.device, compile=runtime.compile
    )


def measure(training: EndToEnd, setting: StepSetting, repeats: int, augment_on: str = "cpu") -> dict[str, Any]:
    """The figures of `repeats` rounds.

    Returns:
        Medians: "seconds_per_step" and "images_per_s" of "synthetic", "loading" and "real"; "lost", the part of real's
        time that synthetic does not take; "real / sum", real's time over that of the other two; "waiting", the part of
        real's time in which the loader is waited for.
    """
    rounds = [training.round() for _ in tqdm(range(repeats), desc="rounds")]
    seconds = {what: [r[what][0] for r in rounds] for what in rounds[0]}
    triples = list(zip(seconds["synthetic"], seconds["loading"], seconds["real"]))
    beton = training.loader.beton
    return {
        "model": setting.model,
        "image_size": setting.size,
        "batch": setting.batch,
        "workers": training.loader.num_workers,
        "images": len(beton),
        "views_on": augment_on,
        "mode": "raw" if (beton.mode == RAW).all() else "jpg",
        "steps": training.steps,
        "rounds": repeats,
        "machine_chosen": str(training.runtime),
        "seconds_per_step": {what: statistics.median(s) for what, s in seconds.items()},
        "images_per_s": {what: setting.batch / statistics.median(s) for what, s in seconds.items()},
        "lost": statistics.median(1 - synthetic / real for synthetic, _, real in triples),
        "real / sum": statistics.median(real / (synthetic + loading) for synthetic, loading, real in triples),
        "waiting": statistics.median(r["real"][1] / r["real"][0] for r in rounds),
    }


def report(result: dict[str, Any]) -> str:
    """The figures in words."""
    rates = result["images_per_s"]
    return (
        f"{result['model']} at {result['image_size']}, {result['batch']} images a step, {result['workers']} loader "
        f"threads, {result['mode']}, crops made on the {result['views_on']}; {result['machine_chosen']}\n"
        f"images/s: real {rates['real']:,.1f}, synthetic {rates['synthetic']:,.1f}, "
        f"loading alone {rates['loading']:,.1f}\n"
        f"lost to loading: {result['lost']:.1%} (waiting for data: {result['waiting']:.1%} of the time)\n"
        f"real / (synthetic + loading): {result['real / sum']:.2f}"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py end_to_end --help`."""
    setting = StepSetting(args.model, args.size, args.batch, options=args.options)
    with tempfile.TemporaryDirectory() as folder:
        jpg, raw = open_betons(args, Path(folder))
        beton = (jpg if args.mode == "jpg" else raw).path
        training = EndToEnd(beton, setting, args.workers, args.steps, args.views_on)
        result = measure(training, setting, args.repeats, args.views_on)
    result["machine"] = describe_machine()
    print(report(result))
    if args.json:
        write_json(args.json, result)
    return result
