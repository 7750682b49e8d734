"""What a benchmark ran on: processor, cores, GPU, versions."""

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..limits import processor

PACKAGES = ("torch", "torchvision", "timm", "pillow", "numba", "ffcv", "albumentations", "nvidia-dali-cuda120")


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Run a block on the first `count` cores that the process may use, and give back all of them."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def describe_machine() -> dict[str, Any]:
    """The machine, as it stands beside the figures of every benchmark."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": found,
        "threading": "threads of Python's own pool, numba's layer is not used",
    }
