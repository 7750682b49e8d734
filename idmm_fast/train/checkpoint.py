"""Checkpoints: written whole or not at all, read without unpickling anything but tensors and plain values."""

import os
import re
import warnings
from pathlib import Path

import torch

KEEP = 2


def save(folder, state, epoch, step):
    """Write `state` to folder/epoch_EEEEE_step_SSSSSSSS.pt, then drop all but the last KEEP. Returns the path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch_{epoch:05d}_step_{step:08d}.pt"
    temporary = path.with_suffix(".pt.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for old in listing(folder)[:-KEEP]:
        old.unlink()
    return path


def listing(folder):
    """The checkpoints in `folder`, oldest first."""
    return sorted((p for p in Path(folder).glob("epoch_*.pt") if re.fullmatch(r"epoch_\d+_step_\d+\.pt", p.name)),
                  key=lambda p: int(p.stem.rsplit("_", 1)[1]))  # fmt: skip


def load(path):
    """Read one checkpoint. Raises ValueError with a sentence if it is damaged."""
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
