"""Checkpoints: written whole or not at all, verified and read without unpickling anything but tensors and plain values."""

import hashlib
import itertools
import os
import re
import threading
import warnings
from pathlib import Path

import torch

from ..files import sha256


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


def save(folder, state, epoch, step, keep=2):
    """Write `state` to folder/epoch_EEEEE_step_SSSSSSSS.pt, then drop all but the last `keep`. Returns the path.

    Raises FloatingPointError, and writes nothing, where weights are not finite: those before them are worth more.
    """
    check_finite(state, step)
    path = write(Path(folder) / f"epoch_{epoch:05d}_step_{step:08d}.pt", state)
    for old in listing(folder)[:-keep]:
        old.unlink()
        _sum_path(old).unlink(missing_ok=True)
    return path


class Writer:
    """Writes in a thread of its own, one thing after another, so that training goes on meanwhile."""

    def __init__(self):
        self._thread, self._error = None, None

    def begin(self, write, *args):
        """Call write(*args) in the thread, once what was begun before is done. Raises what that one raised."""
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(write, args), name="idmm-checkpoint")
        self._thread.start()

    def _work(self, write, args):
        try:
            write(*args)
        except Exception as error:
            self._error = error

    def wait(self):
        """Return when all is written. Raises OSError if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OSError):
                raise OSError(
                    f"a checkpoint could not be written: {error}. Those before it are kept; make room, then go on with --training.resume=auto"
                ) from error
            raise error


def check_finite(state, step):
    """Raise FloatingPointError where the weights of `state` are not finite."""
    for name, tensor in state["model"].items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"after step {step} the weights '{name}' are not finite, so no checkpoint was written; the ones before it are kept. "
                f"Go on from the last one with a smaller training.lr, or training.amp=fp32."
            )


def set_aside(folder, step):
    """Move the checkpoints in `folder` that are later than `step` to a new folder aside_N in it. Returns that folder; None if there are none.

    Training goes on from `step`, and what it writes must not be taken for older than they are.
    """
    later = [path for path in listing(folder) if step_of(path) > step]
    if not later:
        return None
    aside = next(p for k in itertools.count(1) if not (p := Path(folder) / f"aside_{k}").exists())
    aside.mkdir()
    for path in later:
        for file in (path, _sum_path(path)):
            if file.exists():
                file.replace(aside / file.name)
    return aside


def step_of(path):
    """How many steps were done when the checkpoint `path` was written, from its name."""
    return int(Path(path).stem.rsplit("_", 1)[1])


def listing(folder):
    """The checkpoints in `folder`, oldest first."""
    return sorted(
        (p for p in Path(folder).glob("epoch_*.pt") if re.fullmatch(r"epoch_\d+_step_\d+\.pt", p.name)), key=step_of
    )


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
    """(path, content) of the newest checkpoint in `folder` that can be read, or (None, None) where there is none; a damaged one is passed over
    with a warning. Raises ValueError where all are damaged."""
    found = listing(folder)
    for path in reversed(found):
        try:
            return path, load(path)
        except ValueError as error:
            warnings.warn(f"{error}; going back to the one before", stacklevel=2)
    if found:
        raise ValueError(
            f"all {len(found)} checkpoints in {folder} are damaged; nothing was changed. Bring back a copy of one, or begin again in another "
            f"--logging.run_dir, or here after moving {folder} away."
        )
    return None, None
