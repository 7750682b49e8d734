"""Checkpoints: written whole or not at all, verified, and read without unpickling anything but tensors and values."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files import first_free, replacing, sha256


class _HashingFile:
    """Hashes what is written to a file in one go from the beginning."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write(path: str | Path, state: dict[str, Any]) -> None:
    """Write a state, and its SHA-256 beside it.

    Args:
        path: a name that ends in .pt; its folder is made.
        state: a tree of tensors and plain values.

    Raises:
        OSError: it can't be written; the file that was there before stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sum_path(path).unlink(missing_ok=True)  # a file without a sum is believed, one with a wrong sum is not
    with replacing(path, unique=False) as temporary, open(temporary, "wb") as file:
        hashing = _HashingFile(file)
        torch.save(state, hashing)  # type: ignore[arg-type]  # write and flush are all that it needs
    with replacing(_sum_path(path), unique=False) as temporary:
        temporary.write_text(hashing.digest.hexdigest(), encoding="utf-8")


def save(folder: str | Path, state: dict[str, Any], epoch: int, step: int, keep: int = 2) -> Path:
    """Write a state to folder/epoch_EEEEE_step_SSSSSSSS.pt, then remove all but the last checkpoints.

    Args:
        folder: the folder of checkpoints.
        state: see `write`; its "model" holds the weights.
        epoch: number of the epoch.
        step: number of steps done.
        keep: how many checkpoints stay.

    Returns:
        pathlib.Path of the checkpoint.

    Raises:
        FloatingPointError: weights are not finite. Nothing is written or removed: those before them are worth more.
        OSError: it can't be written.
    """
    check_finite(state, step)
    path = Path(folder) / f"epoch_{epoch:05d}_step_{step:08d}.pt"
    write(path, state)
    for old in listing(folder)[:-keep]:
        old.unlink()
        _sum_path(old).unlink(missing_ok=True)
    return path


def check_finite(state: dict[str, Any], step: int) -> None:
    """Raise FloatingPointError if the weights of `state`, taken after `step` steps, are not finite."""
    for name, tensor in state["model"].items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"after step {step} the weights '{name}' are not finite, so no checkpoint was written; those before it "
                f"are kept. Resume from the last one with training.amp=fp32, or start another run from its weights "
                f"(--init CHECKPOINT --out DIR) with a smaller training.lr."
            )


class Writer:
    """Writes in a thread of its own, one thing after another, so that training continues meanwhile."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def begin(self, write: Callable[..., object], *args: Any) -> None:
        """Call write(*args) in the thread, once the last one is done; raise what that one raised."""
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(write, args), name="idmm-checkpoint")
        self._thread.start()

    def _work(self, write: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            write(*args)
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OSError):
                raise OSError(
                    f"a checkpoint could not be written: {error}. Those before it are kept; make room, then resume "
                    f"with --training.resume=auto"
                ) from error
            raise error


def listing(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    found = Path(folder).glob("epoch_*.pt")
    return sorted((p for p in found if re.fullmatch(r"epoch_\d+_step_\d+\.pt", p.name)), key=step_of)


def step_of(path: str | Path) -> int:
    """How many steps were done when the checkpoint `path` was written, from its name."""
    return int(Path(path).stem.rsplit("_", 1)[1])


def load(path: str | Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        ValueError: it is damaged, or no checkpoint.
    """
    path = Path(path)
    if _sum_path(path).exists() and sha256(path) != _sum_path(path).read_text().strip():
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {_sum_path(path).name}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise ValueError(f"{path} is damaged or no checkpoint of this project ({type(error).__name__})") from error


def newest(folder: str | Path) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """The newest checkpoint that can be read; a damaged one is passed over with a warning.

    Returns:
        (path, state); (None, None) where there is none.

    Raises:
        ValueError: all checkpoints are damaged.
    """
    found = listing(folder)
    for path in reversed(found):
        try:
            return path, load(path)
        except ValueError as error:
            warnings.warn(f"{error}; going back to the one before", stacklevel=2)
    if found:
        raise ValueError(
            f"all {len(found)} checkpoints in {folder} are damaged; nothing was changed. Bring back a copy of one, or "
            f"start again in another --logging.run_dir, or here after moving {folder} away."
        )
    return None, None


def set_aside(folder: str | Path, step: int, epochs: int | None = None) -> Path | None:
    """Move the checkpoints that are later than `step` to a new folder aside_N.

    Training resumes from `step`; what it writes must not be taken for older than they are.

    Args:
        folder: the folder of checkpoints.
        step: number of steps done.
        epochs: number of epochs done: best.pt is moved too where it is of a later one. None: it stays.

    Returns:
        pathlib.Path of the new folder, or None where nothing was moved.
    """
    later = [path for path in listing(folder) if step_of(path) > step]
    best = Path(folder) / "best.pt"
    if epochs is not None and best.exists():
        with contextlib.suppress(ValueError):  # damaged
            if load(best).get("epoch", epochs - 1) >= epochs:
                later.append(best)
    if not later:
        return None
    aside = first_free(Path(folder) / "aside")
    aside.mkdir()
    for path in later:
        for file in (path, _sum_path(path)):
            if file.exists():
                file.replace(aside / file.name)
    return aside


def _sum_path(path: Path) -> Path:
    """Where the SHA-256 of a checkpoint is."""
    return path.with_suffix(".sha256")


class CheckpointClock:
    """Says when a checkpoint is due by the clock.

    Args:
        minutes: between two checkpoints; 0: never by the clock.
        step: number of steps done at the start.
    """

    def __init__(self, minutes: float, step: int) -> None:
        self.minutes = minutes
        self.restart(step)

    def restart(self, step: int) -> None:
        """Count from now on; `step`: the steps that the checkpoint just written holds."""
        self.since, self.step = time.monotonic(), step

    def is_due(self) -> bool:
        """Whether the minutes have passed since the last restart."""
        return 0 < self.minutes < (time.monotonic() - self.since) / 60
