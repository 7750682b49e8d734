"""images/s of a conversion to an FFCV dataset, against FFCV's own DatasetWriter, on the same JPEGs and the same cores.

  ours, as they are  the JPEGs' own bytes, each read to the last bit (--mode jpg)
  ours, encoded      all of them decoded, shrunk and encoded again (--max-resolution, a tenth below their size)
  ffcv               DatasetWriter at its defaults: raw pixels
  ffcv, jpg          DatasetWriter, write_mode="jpg": all of them decoded and encoded again
  ffcv, encoded      the same, with the same max_resolution

Every conversion has a process of its own, since FFCV's writer forks; the systems take turns, `--repeats` rounds. What
is timed is the conversion without the imports. The peak memory of ours is measured too, for all images and for a
tenth.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..files import write_json
from ..limits import cores
from .machine import describe_machine
from .photographs import sample_photographs
from .rounds import median_min_max, print_systems

SYSTEMS = ("ours, as they are", "ours, encoded", "ffcv", "ffcv, jpg", "ffcv, encoded")
RATIOS = (
    ("ours, as they are", "ffcv"),
    ("ours, as they are", "ffcv, jpg"),
    ("ours, encoded", "ffcv, encoded"),
)


def _ours(paths: list[Path], out: Path, workers: int, limit: int | None) -> float:
    """Seconds of our conversion; limit: max_resolution, or the bytes as they are."""
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


def _stock(paths: list[Path], out: Path, workers: int, options: dict[str, Any]) -> float:
    """Seconds of FFCV's conversion; options: of its RGBImageField."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Images:
        """What FFCV's writer reads."""

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.open(paths[i]).convert("RGB"), 0

    began = time.perf_counter()
    DatasetWriter(
        str(out), {"image": RGBImageField(**options), "label": IntField()}, num_workers=workers
    ).from_indexed_dataset(Images())
    return time.perf_counter() - began


def _convert(system: str, paths: list[Path], out: Path, workers: int, limit: int) -> dict[str, float]:
    """Seconds of one conversion, and the peak memory of this process in MB."""
    if system.startswith("ours"):
        seconds = _ours(paths, out, workers, limit if system.endswith("encoded") else None)
    else:
        choices: dict[str, dict[str, Any]] = {
            "ffcv": {},
            "ffcv, jpg": {"write_mode": "jpg"},
            "ffcv, encoded": {"write_mode": "jpg", "max_resolution": limit},
        }
        seconds = _stock(paths, out, workers, choices[system])
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    return {"seconds": seconds, "peak_mb": peak}


def _run(system: str, paths: list[Path], folder: Path | str, workers: int, limit: int) -> dict[str, float]:
    """`_convert` in a process of its own."""
    out = Path(folder) / "out.beton"
    task = json.dumps([system, [str(p) for p in paths], str(out), workers, limit])
    command = [sys.executable, "-m", __spec__.name]
    done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=1800, check=False)
    out.unlink(missing_ok=True)
    if done.returncode:
        raise ValueError(f"{system}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'it failed'}")
    return json.loads(done.stdout.splitlines()[-1])


def _find_images(images: Path | None, folder: Path | str) -> list[Path]:
    """The JPEGs in a tree, or made ones."""
    if images:
        found = sorted(p for p in Path(images).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            raise ValueError(f"{images} holds no JPEGs")
        return found
    found = []
    for k, data in enumerate(sample_photographs(200)):
        found.append(Path(folder) / f"{k}.jpg")
        found[-1].write_bytes(data)
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; see `benchmark.py writer --help`.

    Raises:
        ValueError: There are no JPEGs, or a system fails.
    """
    workers = args.workers or cores()
    with tempfile.TemporaryDirectory() as folder:
        found = _find_images(args.images, folder)
        paths = [found[k % len(found)] for k in range(args.count)]
        sizes = np.array([Image.open(p).size for p in found])
        limit = int(0.9 * np.median(sizes.max(axis=1)))
        for path in set(paths):
            path.read_bytes()  # from memory, so that the disk is not what is measured
        seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
        for _ in tqdm(range(args.repeats), desc="rounds"):
            for system in SYSTEMS:
                seconds[system].append(_run(system, paths, folder, workers, limit)["seconds"])
        few = _run(SYSTEMS[0], paths[: len(paths) // 10], folder, workers, limit)["peak_mb"]
        many = _run(SYSTEMS[0], paths, folder, workers, limit)["peak_mb"]
    medians = {system: statistics.median(args.count / t for t in times) for system, times in seconds.items()}
    result = {
        "images": args.count,
        "different": len(found),
        "median_pixels": np.median(sizes, axis=0).astype(int).tolist(),
        "workers": workers,
        "repeats": args.repeats,
        "max_resolution": limit,
        "ratios": {f"{ours} / {theirs}": medians[ours] / medians[theirs] for ours, theirs in RATIOS},
        "images_per_s": {s: median_min_max([args.count / t for t in times]) for s, times in seconds.items()},
        "peak_mb": {"a tenth of the images": few, "all": many},
        "machine": describe_machine(),
    }
    _print(result)
    if args.json:
        write_json(args.json, result)
    return result


def _print(result: dict[str, Any]) -> None:
    """All figures, a line each."""
    width, height = result["median_pixels"]
    count, peak = result["images"], result["peak_mb"]
    print(
        f"{count} JPEGs of about {width} x {height}, {result['workers']} workers, medians of {result['repeats']}; "
        f"encoded: longer side at most {result['max_resolution']}"
    )
    print_systems(result["ratios"], result["images_per_s"], 32)
    print(
        f"peak memory of ours: {peak['all']:.0f} MB for {count} images, "
        f"{peak['a tenth of the images']:.0f} MB for {count // 10}"
    )


if __name__ == "__main__":
    system, paths, out, workers, limit = json.loads(sys.stdin.read())
    print(json.dumps(_convert(system, [Path(p) for p in paths], Path(out), workers, limit)))
