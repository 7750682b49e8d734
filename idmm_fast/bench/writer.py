"""Images per second of conversion: ours against FFCV's own DatasetWriter, on the same JPEGs and the same cores.

  ours, as they are    the JPEGs' own bytes, each read to the last bit (--mode jpg)
  ours, encoded        all of them decoded, shrunk and encoded again (--max-resolution, a tenth below their size)
  ffcv                 DatasetWriter at its defaults: raw pixels
  ffcv, jpg            DatasetWriter, write_mode="jpg": all of them decoded and encoded again
  ffcv, encoded        the same, with the same max_resolution
Each run is a process of its own, since FFCV's writer forks; what is timed is the conversion, without the imports (half a second
of numba's is among them). The memory
of a conversion of ten times the images is measured beside.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..limits import cores
from .loader import machine, made_photographs

SYSTEMS = ("ours, as they are", "ours, encoded", "ffcv", "ffcv, jpg", "ffcv, encoded")


def _ours(paths, out, workers, limit):
    from ..beton import write_beton
    from ..beton.encode import encode
    from ..datasets import Split

    encode(paths[0], "jpg", limit)  # numba imports half of itself when a kernel is first called
    split = Split(paths, [0] * len(paths), ["all"])
    began = time.perf_counter()
    write_beton(
        out, split, dataset="bench", name="train", mode="jpg", workers=workers, max_resolution=limit, quiet=True
    )
    return time.perf_counter() - began


def _stock(paths, out, workers, options):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Images:
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            return Image.open(paths[i]).convert("RGB"), 0

    began = time.perf_counter()
    DatasetWriter(
        str(out), {"image": RGBImageField(**options), "label": IntField()}, num_workers=workers
    ).from_indexed_dataset(Images())
    return time.perf_counter() - began


def _convert(system, paths, out, workers, limit):
    """Seconds of one conversion, and the process's peak memory in MB."""
    if system.startswith("ours"):
        seconds = _ours(paths, out, workers, limit if system.endswith("encoded") else None)
    else:
        options = {
            "ffcv": {},
            "ffcv, jpg": {"write_mode": "jpg"},
            "ffcv, encoded": {"write_mode": "jpg", "max_resolution": limit},
        }[system]
        seconds = _stock(paths, out, workers, options)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(l.split()[1]) for l in status if l.startswith("VmHWM")) / 1024
    return {"seconds": seconds, "peak_mb": peak}


def _run(system, paths, folder, workers, limit):
    out = Path(folder) / "out.beton"
    task = json.dumps([system, [str(p) for p in paths], str(out), workers, limit])
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name], input=task, capture_output=True, text=True, timeout=1800, check=False
    )
    out.unlink(missing_ok=True)
    if done.returncode:
        raise ValueError(f"{system}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'it failed'}")
    return json.loads(done.stdout.splitlines()[-1])


def run(args):
    """Measure and print; see `benchmark.py writer --help`."""
    workers = args.workers or cores()
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            found = sorted(p for p in Path(args.images).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
            if not found:
                raise ValueError(f"{args.images} holds no JPEGs")
        else:
            found = []
            for k, data in enumerate(made_photographs(200)):
                found.append(Path(folder) / f"{k}.jpg")
                found[-1].write_bytes(data)
        paths = [found[k % len(found)] for k in range(args.count)]
        sizes = np.array([Image.open(p).size for p in found])
        limit = int(0.9 * np.median(sizes.max(axis=1)))
        for path in set(paths):
            path.read_bytes()  # from memory, so that the disk is not what is measured
        times = {s: [] for s in SYSTEMS}
        for _ in tqdm(range(args.repeats), desc="rounds"):
            for system in SYSTEMS:
                times[system].append(_run(system, paths, folder, workers, limit)["seconds"])
        few = _run(SYSTEMS[0], paths[: len(paths) // 10], folder, workers, limit)["peak_mb"]
        many = _run(SYSTEMS[0], paths, folder, workers, limit)["peak_mb"]
    rates = {s: [args.count / t for t in ts] for s, ts in times.items()}
    medians = {s: statistics.median(r) for s, r in rates.items()}
    result = {
        "images": args.count,
        "different": len(found),
        "median_pixels": np.median(sizes, axis=0).astype(int).tolist(),
        "workers": workers,
        "repeats": args.repeats,
        "max_resolution": limit,
        "ratios": {
            "ours, as they are / ffcv": medians["ours, as they are"] / medians["ffcv"],
            "ours, as they are / ffcv, jpg": medians["ours, as they are"] / medians["ffcv, jpg"],
            "ours, encoded / ffcv, encoded": medians["ours, encoded"] / medians["ffcv, encoded"],
        },
        "images_per_s": {s: {"median": medians[s], "min": min(r), "max": max(r)} for s, r in rates.items()},
        "peak_mb": {"a tenth of the images": few, "all": many},
        "machine": machine(),
    }
    width, height = result["median_pixels"]
    print(
        f"{args.count} JPEGs of about {width} x {height}, {workers} workers, medians of {args.repeats}; encoded: longer side at most {limit}"
    )
    for name, ratio in result["ratios"].items():
        print(f"{name:<32} {ratio:6.2f}")
    for name, r in result["images_per_s"].items():
        print(f"{name:<32} {r['median']:6.0f} images/s   ({r['min']:.0f} .. {r['max']:.0f})")
    print(f"peak memory of ours: {many:.0f} MB for {args.count} images, {few:.0f} MB for {args.count // 10}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    system, paths, out, workers, limit = json.loads(sys.stdin.read())
    print(json.dumps(_convert(system, [Path(p) for p in paths], Path(out), workers, limit)))
