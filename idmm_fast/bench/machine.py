"""What a benchmark ran on: processor, cores, GPU, versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..limits import processor

PACKAGES = ("torch", "torchvision", "timm", "pillow", "numba", "ffcv", "albumentations", "nvidia-dali-cuda120")


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
