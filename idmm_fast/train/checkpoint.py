"""Checkpoints: written whole or not at all, verified and read without unpickling anything but tensors and plain values."""

import hashlib
import os
import re
import warnings
from pathlib import Path

import torch

from ..beton.write import sha256

KEEP = 2


class _Hashed:
    """A file that hashes what is written to it, for what is written in one go from the beginning."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def _write(path, content):
    """`content(file)` to `path`, whole or not at all. Returns the SHA-256."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            hashed = _Hashed(file)
            content(hashed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return hashed.digest.hexdigest()


def _sum_path(path):
    return path.with_suffix(".sha256")


def write(path, state):
    """Write `state` to `path`, and its SHA-256 beside it. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sum_path(path).unlink(missing_ok=True)  # a file without a sum is believed, one with a wrong sum is not
    digest = _write(path, lambda file: torch.save(state, file))
    _write(_sum_path(path), lambda file: file.write(digest.encode()))
    return path


def save(folder, state, epoch, step):
    """Write `state` to folder/epoch_EEEEE_step_SSSSSSSS.pt, then drop all but the last KEEP. Returns the path."""
    path = write(Path(folder) / f"epoch_{epoch:05d}_step_{step:08d}.pt", state)
    for old in listing(folder)[:-KEEP]:
        old.unlink()
        _sum_path(old).unlink(missing_ok=True)
    return path


def listing(folder):
    """The checkpoints in `folder`, oldest first."""
    return sorted((p for p in Path(folder).glob("epoch_*.pt") if re.fullmatch(r"epoch_\d+_step_\d+\.pt", p.name)),
                  key=lambda p: int(p.stem.rsplit("_", 1)[1]))  # fmt: skip


def load(path):
    """Read one checkpoint. Raises ValueError with a sentence if it is damaged."""
    path = Path(path)
    if _sum_path(path).exists() and sha256(path) != _sum_path(path).read_text().strip():
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {_sum_path(path).name}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise ValueError(f"{path} is damaged or no checkpoint of this project ({type(error).__name__})") from error


def newest(folder):
    """The newest checkpoint in `folder` that can be read, or None; a damaged one is passed over with a warning."""
    for path in reversed(listing(folder)):
        try:
            return load(path)
        except ValueError as error:
            warnings.warn(f"{error}; going back to the one before", stacklevel=2)
    return None
