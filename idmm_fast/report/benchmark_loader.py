"""Images per second of the six-view pipeline of IDMM at 112 pixels, uint8 out, on the same JPEGs and the same cores.

Measured in one process, the systems in turn, several times over; medians are reported, ratios first. What runs:
  ours      MultiCropLoader, CutMix included
  decode    libjpeg-turbo alone on the same bytes, through the same binding: the floor of any loader of JPEGs
  official  the published recipe in PIL and torchvision, without CutMix
"""

import io
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from tqdm import tqdm

from ..beton import open_beton, write_beton
from ..datasets import Split, folder
from ..loader import IDMM_VIEWS, MultiCropLoader
from ..loader.whole import decode_rows


def _made_photographs(count=256):
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


def _beton(args, scratch):
    if args.beton:
        return args.beton
    if args.images:
        split = folder.load(args.images)["train"]
    else:
        images = _made_photographs()
        split = Split(images, [0] * len(images), ["all"])
    return write_beton(Path(scratch) / "bench.beton", split, dataset="bench", name="train", mode="jpg").path


class _Blur:
    def __call__(self, image):
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(1).uniform_(0.1, 2.0))))


def _official(data, workers):
    """A function that makes all views of all images once, as the published code does for each."""

    def view(scale):
        return transforms.Compose([
            transforms.RandomResizedCrop(112, scale=scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([_Blur()], p=0.5),
            transforms.PILToTensor(),
        ])  # fmt: skip

    views = [view(v.scale) for v in IDMM_VIEWS for _ in range(v.count)]

    def one(source):
        image = Image.open(io.BytesIO(source)).convert("RGB")
        return [v(image) for v in views]

    def everything():
        if workers == 1:
            for source in data:
                one(source)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(one, data))

    return everything


def run(args):
    """Measure and print; see `benchmark.py loader --help`."""
    peers = [p for p in args.peers.split(",") if p]
    unknown = set(peers) - {"official"}
    if unknown:
        raise ValueError(f"unknown peers {sorted(unknown)}; there is: official")
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.workers]))
    torch.set_num_threads(args.workers)
    with tempfile.TemporaryDirectory() as scratch:
        beton = open_beton(_beton(args, scratch))
        if (beton.mode != 0).any():
            raise ValueError(
                f"{beton.path} holds raw pixels; the comparison is on JPEGs (write_datasets.py --mode jpg)"
            )
        rows = np.arange(min(args.limit, len(beton)))
        data = [bytes(beton.bytes[beton.ptr[r] : beton.ptr[r] + beton.length[r]]) for r in rows]
        loader = MultiCropLoader(beton.path, 64, args.workers, rows=rows)
        next(iter(loader))  # compile, or load what was compiled

        def ours():
            for _ in loader:
                pass

        def decode():
            with ThreadPoolExecutor(args.workers) as pool:
                list(pool.map(lambda part: decode_rows(beton, part), np.array_split(rows, args.workers)))

        systems = {"ours": ours, "decode": decode} | (
            {"official": _official(data, args.workers)} if "official" in peers else {}
        )
        times = {name: [] for name in systems}
        for _ in tqdm(range(args.repeats), desc="rounds"):
            for name, function in systems.items():
                began = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - began)
        rates = {name: [rows.size / t for t in ts] for name, ts in times.items()}
        medians = {name: statistics.median(r) for name, r in rates.items()}
        result = {
            "images": int(rows.size), "median_pixels": [int(np.median(beton.height)), int(np.median(beton.width))], "workers": args.workers,
            "images_per_s": {n: {"median": medians[n], "min": min(r), "max": max(r)} for n, r in rates.items()},
            "ours_over": {n: medians["ours"] / m for n, m in medians.items() if n != "ours"},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
            "versions": {p: version(p) for p in ("torch", "torchvision", "pillow", "numba", "ffcv")},
        }  # fmt: skip
    print(
        f"{rows.size} images of about {result['median_pixels'][1]} x {result['median_pixels'][0]}, six views each, {args.workers} worker(s)"
    )
    for name, ratio in result["ours_over"].items():
        print(f"ours / {name:<9} {ratio:6.2f}")
    for name, r in result["images_per_s"].items():
        print(f"{name:<16} {r['median']:8.0f} images/s   ({r['min']:.0f} .. {r['max']:.0f})")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
