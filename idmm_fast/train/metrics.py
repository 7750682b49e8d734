"""metrics.jsonl, a line a step, and the same numbers for TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..files import write_text
from .trackers import Trackers

# What a step writes; what else a line holds comes from an evaluation after it.
STEP_KEYS = {"epoch", "step", "loss", "nonfinite_steps", "lr", "images_per_s", "data_wait"}


class MetricsLog:
    """The metrics of a run, open behind the line of the last step that a checkpoint holds; later steps are made again.

    Args:
        folder: the run folder.
        state: the checkpoint that the run resumes from, or None.
        trackers: what else gets the numbers.

    Attributes:
        line: the last line, a dict.
    """

    def __init__(self, folder: Path, state: dict[str, Any] | None, trackers: Trackers) -> None:
        path, self._trackers = folder / "metrics.jsonl", trackers
        step = state["step"] if state else 0
        kept = _lines_before(path, step)
        self.line: dict[str, Any] = json.loads(kept[-1]) if kept else {}
        if state and step and self.line.get("step") != step - 1 and "line" in state:  # lost, or this is another folder
            self.line = state["line"]
            kept.append(json.dumps(self.line))
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115  closed by close()
        end = self._file.seek(0, os.SEEK_END)
        self._start = end - len(kept[-1].encode()) - 1 if kept else 0  # of the last line
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "events"), purge_step=step if state else None)
        except BaseException:
            self._file.close()
            raise

    def log(self, values: dict[str, Any]) -> None:
        """Write a line: the numbers of one step."""
        self.line, self._start = values, self._file.seek(0, os.SEEK_END)
        self._write(values)

    def add(self, results: dict[str, Any]) -> None:
        """Add the results of an evaluation to the last line."""
        self.line = self.line | results
        self._write(results)

    def is_evaluated(self) -> bool:
        """Whether the last line holds more than its step gave: the results of the evaluation after it."""
        return bool(set(self.line) - STEP_KEYS)

    def close(self) -> None:
        """Close metrics.jsonl, the events of TensorBoard, and what else gets the numbers."""
        self._file.close()
        self._events.close()
        self._trackers.close()

    def _write(self, new: dict[str, Any]) -> None:
        """Write the last line where it starts, over its shorter self; `new` are the numbers that were added."""
        _write_all(self._file.fileno(), (json.dumps(self.line) + "\n").encode(), self._start)
        for key, value in new.items():
            if key not in ("step", "epoch"):
                self._events.add_scalar(key, value, self.line["step"])
        self._trackers.log({"epoch": self.line["epoch"], **new}, self.line["step"])


def _lines_before(path: Path, step: int) -> list[str]:
    """The lines of `path` that are of steps before `step`; a line that was cut short is left out."""
    kept = []
    if step and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError):
                if json.loads(line)["step"] < step:
                    kept.append(line)
    return kept


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    """Write all of `data` at byte `at`; a disk that is nearly full takes a part of it, and refuses the rest."""
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count
