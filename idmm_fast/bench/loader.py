"""Images per second of the six-view pipeline of IDMM at 112 pixels, uint8 out, on the same JPEGs and the same cores.

Measured in one process, the systems in turn, there and back; ratios are medians of the rounds' ratios, rates medians too. What runs:
  ours         MultiCropLoader, CutMix included
  ours, raw    the same images stored as pixels
  ours, twice  with twice the workers, on twice the cores, where there are so many; and decode, twice: what the machine gives at best
  decode       libjpeg-turbo alone on the same bytes, into one buffer: the floor of any loader that decodes all of a JPEG
  and the peers (see peers.py).
"""

import io
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from ..beton import open_beton, write_beton
from ..datasets import Split, folder
from ..loader import MultiCropLoader
from .baselines import PEERS
from .stages import STAGES, Stages, kernels

_PASSES = 4  # of the fast systems over the images in a turn, so that a turn of theirs is not over in a moment


def made_photographs(count=256):
    """JPEGs of 500 x 375, q90, from the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    rng, sources = np.random.default_rng(0), load_sample_images().images
    result = []
    for k in range(count):
        source = sources[k % 2]
        top, left = rng.integers(0, source.shape[0] - 375), rng.integers(0, source.shape[1] - 500)
        buffer = io.BytesIO()
        Image.fromarray(source[top : top + 375, left : left + 500]).save(buffer, "JPEG", quality=90)
        result.append(buffer.getvalue())
    return result


def betons(args, scratch):
    """(beton of JPEGs, beton of the same images as pixels), opened."""
    if args.beton:
        jpg = open_beton(args.beton)
        if (jpg.mode != 0).any():
            raise ValueError(f"{jpg.path} holds raw pixels; the comparison is on JPEGs (write_datasets.py --mode jpg)")
        images = [bytes(jpg.bytes[p : p + n]) for p, n in zip(jpg.ptr[: args.limit], jpg.length)]
    else:
        images = folder.load(args.images)["train"].images[: args.limit] if args.images else made_photographs(args.limit)
        jpg = open_beton(_write(images, scratch, "jpg"))
    return jpg, open_beton(_write(images, scratch, "raw"))


def _write(images, scratch, mode):
    split = Split(images, [0] * len(images), ["all"])
    return write_beton(Path(scratch) / f"{mode}.beton", split, dataset="bench", name="train", mode=mode).path


def machine():
    """What a figure was measured on: processor, cores, versions."""
    packages = ("torch", "torchvision", "pillow", "numba", "ffcv", "albumentations", "nvidia-dali-cuda120")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (l.split(":", 1)[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")), name
        )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": found,
        "threading": "threads of Python's own pool, numba's layer is not used",
    }


def _decoder(beton, rows, workers):
    """Decode alone: every image into the buffer of its thread."""
    parts = [(Stages(beton, part), part) for part in np.array_split(rows, workers)]

    def everything():
        with ThreadPoolExecutor(workers) as pool:
            for _ in range(_PASSES):
                list(pool.map(lambda p: p[0].upto("decode"), parts))

    everything.images = _PASSES * rows.size
    return everything


def run(args):
    """Measure and print; see `benchmark.py loader --help`."""
    peers = [p for p in args.peers.split(",") if p]
    unknown = set(peers) - set(PEERS)
    if unknown:
        raise ValueError(f"unknown peers {sorted(unknown)}; there are: {', '.join(PEERS)}")
    all_cores = sorted(os.sched_getaffinity(0))
    if args.workers > len(all_cores):
        raise ValueError(f"--workers {args.workers} is more than the {len(all_cores)} cores of this machine")
    few = set(all_cores[: args.workers])
    torch.set_num_threads(args.workers)
    with tempfile.TemporaryDirectory() as scratch:
        jpg, raw = betons(args, scratch)
        os.sched_setaffinity(0, few)
        rows = np.arange(min(args.limit, len(jpg)))
        data = [bytes(jpg.bytes[p : p + n]) for p, n in zip(jpg.ptr[rows], jpg.length[rows])]

        def ours(beton, workers):
            loader = MultiCropLoader(beton.path, 64, workers, rows=rows)

            def everything():
                for _ in range(_PASSES):
                    for _ in loader:
                        pass

            everything.images = _PASSES * rows.size
            return everything

        systems = {}
        if 2 * args.workers <= len(all_cores):
            os.sched_setaffinity(0, set(all_cores[: 2 * args.workers]))
            systems["ours, twice"] = ours(jpg, 2 * args.workers)
            systems["decode, twice"] = _decoder(jpg, rows, 2 * args.workers)
            for function in systems.values():
                function()  # threads may use the cores that they were made with
            os.sched_setaffinity(0, few)
        systems |= {
            "ours": ours(jpg, args.workers),
            "decode": _decoder(jpg, rows, args.workers),
            "ours, raw": ours(raw, args.workers),
        }
        absent = []
        for name in peers:
            try:
                systems[name] = PEERS[name](jpg, data, args.workers)
            except ImportError as error:
                absent.append(name)
                print(f"{name} is not installed ({error.name}); `make bench` installs the peers")
        for name in tqdm(systems, desc="warming up"):
            systems[name]()
        rates = {name: [] for name in systems}
        for turn in tqdm(range(args.repeats), desc="rounds"):
            for name, function in list(systems.items())[:: -1 if turn % 2 else 1]:
                os.sched_setaffinity(0, set(all_cores[: 2 * args.workers]) if name.endswith("twice") else few)
                time.sleep(0.5)  # what a system still prepares for its next turn is not to slow another one
                began = time.perf_counter()
                function()
                rates[name].append(getattr(function, "images", rows.size) / (time.perf_counter() - began))
        os.sched_setaffinity(0, few)
        stages = {"jpg": Stages(jpg, rows).microseconds(), "raw": Stages(raw, rows).microseconds()}
    medians = {name: statistics.median(r) for name, r in rates.items()}
    for mode, name in (("jpg", "ours"), ("raw", "ours, raw")):
        stages[mode]["wait"] = 1e6 * args.workers / medians[name] - sum(stages[mode].values())

    def ratio(a, b):  # of each round, which the machine's moods change less than the rates
        return statistics.median(x / y for x, y in zip(rates[a], rates[b]))

    ratios = {f"ours / {n}": ratio("ours", n) for n in rates if not n.startswith("ours") and n != "decode, twice"}
    if "official" in rates:
        ratios["ours, raw / official"] = ratio("ours, raw", "official")
    if "ours, twice" in rates:
        ratios["ours, twice / ours"] = ratio("ours, twice", "ours")
        ratios["decode, twice / decode"] = ratio("decode, twice", "decode")
    result = {
        "images": int(rows.size),
        "median_pixels": [int(np.median(jpg.height)), int(np.median(jpg.width))],
        "workers": args.workers,
        "repeats": args.repeats,
        "ratios": ratios,
        "absent": absent,
        "microseconds_per_image": stages,
        "microseconds_per_view": kernels(),
        "images_per_s": {n: {"median": medians[n], "min": min(r), "max": max(r)} for n, r in rates.items()},
        "machine": machine(),
    }
    _print(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        _plot(result, args.plot)
    return result


TARGETS = {
    "ours / official": (6, 10),
    "ours / dali": (5, 8),
    "ours / ffcv": (8, 12),
    "ours / albumentations": (2.2, 3.3),
    "ours / decode": (0.4, 0.6),
    "ours, raw / official": (12, 20),
    "ours, twice / ours": (1.8, 1.95),
    "decode, twice / decode": ("-", "-"),
}
NAMES = {
    "ours / official": "the published recipe in PIL and torchvision",
    "ours / dali": "NVIDIA DALI, CPU pipeline",
    "ours / ffcv": "stock FFCV, a decoder for each view",
    "ours / albumentations": "Albumentations 2 on OpenCV",
    "ours / decode": "libjpeg-turbo decoding alone",
    "ours, raw / official": "the published recipe on JPEGs, ours on a raw beton",
    "ours, twice / ours": "two workers against one",
    "decode, twice / decode": "for comparison: two threads that only decode, against one",
}


def table(result):
    """The ratios of a run as a Markdown table, with what was aimed at."""
    lines = ["| ours against | ratio | must | aim | images/s, ours and theirs |", "|---|---|---|---|---|"]
    rates = {name: r["median"] for name, r in result["images_per_s"].items()}
    for name, ratio in result["ratios"].items():
        must, aim = TARGETS[name]
        ours, theirs = (rates[n] for n in name.split(" / "))
        lines.append(f"| {NAMES[name]} | **{ratio:.2f}** | {must} | {aim} | {ours:.0f}, {theirs:.0f} |")
    return "\n".join(lines) + "\n"


def _plot(result, path):
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    rates, stages = figure.subplots(1, 2)
    names = sorted(result["images_per_s"], key=lambda n: result["images_per_s"][n]["median"])
    bars = rates.barh(
        names,
        [result["images_per_s"][n]["median"] for n in names],
        color=["tab:blue" if n.startswith("ours") else "silver" for n in names],
    )
    rates.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    rates.set(title=f"six views an image, {result['workers']} core(s)", xlabel="images/s")
    left = dict.fromkeys(result["microseconds_per_image"], 0.0)
    for k, stage in enumerate((*STAGES, "wait")):
        widths = [max(result["microseconds_per_image"][mode][stage], 0.0) for mode in left]
        drawn = stages.barh(list(left), widths, left=list(left.values()), color=f"C{k}", label=stage)
        stages.bar_label(drawn, [f"{w:.0f}" if w > 60 else "" for w in widths], label_type="center", fontsize=8)
        left = {mode: left[mode] + w for mode, w in zip(left, widths)}
    stages.set(title="where our time goes", xlabel="microseconds an image")
    stages.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.savefig(path, dpi=110)


def _print(result):
    height, width = result["median_pixels"]
    print(
        f"{result['images']} images of about {width} x {height}, six views each, {result['workers']} worker(s), medians of {result['repeats']}"
    )
    for name, ratio in result["ratios"].items():
        print(f"{name:<24} {ratio:6.2f}")
    for name, r in result["images_per_s"].items():
        print(f"{name:<24} {r['median']:6.0f} images/s   ({r['min']:.0f} .. {r['max']:.0f})")
    for mode, stages in result["microseconds_per_image"].items():
        print(f"microseconds an image, {mode}: " + ", ".join(f"{stage} {t:.0f}" for stage, t in stages.items()))
    print("microseconds a view: " + ", ".join(f"{name} {t:.1f}" for name, t in result["microseconds_per_view"].items()))
