"""The run folder: config.yaml, starts.jsonl, metrics.jsonl, TensorBoard events, checkpoints/, pictures."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from tqdm import tqdm

from ..beton import Beton
from ..config import ConfigError, as_dict
from ..config.load import is_run_config
from ..evaluate.classes import class_names
from ..files import sha256, write_text
from ..lock import Lock
from ..models.read_weights import weights_file
from ..runtime import distributed
from . import checkpoint
from .metrics import MetricsLog
from .provenance import launch_time, record_start, started_since
from .trackers import Trackers

# What may change between two parts of a run, since no number depends on it but for rounding. Nothing else may. Of
# data.train and data.test the images count, not where they are.
_MAY_CHANGE = {
    "training": (
        "resume",
        "device",
        "compile",
        "amp",
        "channels_last",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "max_nonfinite_steps",
        "max_steps",
    ),
    "data": ("train", "test", "val", "num_workers", "on_error", "cache"),
    "logging": ("run_dir", "report", "wandb", "mlflow"),
    "online_eval": ("every", "linear", "unlabelled_every"),
    "progressive": ("stages",),
}
# What runs did that were begun before there was such a key.
BEFORE_THE_KEY: dict[str, dict[str, Any]] = {
    "model": {"init": None, "mean": None, "std": None, "freeze": False},
    "head": {"temperature": 0.0, "sqrt_kl": 0.0},
    "crops": {"spread": 1, "spread_mb": 1024, "schedule": []},
    "training": {
        "optimizer": "adamw",
        "minutes": 0.0,
        "layer_decay": 1.0,
        "ema": 0.0,
        "accumulate": 1,
        "patience": 0,
    },
    "logging": {"wandb": None, "mlflow": None},
}
_ABSENT = "nothing (there was no such key)"


class OtherInputs(ConfigError):
    """A run can't resume, since its images, labels or first weights are not those that it started with."""


def _is_left_over(name: str) -> bool:
    """Whether a file is a temporary one of `replacing` whose process is gone."""
    found = re.fullmatch(r".+\.(\d+)-\d+\.tmp", name)
    return found is not None and not Path(f"/proc/{found[1]}").exists()


def effective_resume(folder: str | Path, resume: str) -> str:
    """What a start resumes from; every process must call it.

    Args:
        folder: the run folder.
        resume: training.resume: "no", "auto" or a path.

    Returns:
        `resume`; but "auto" where torchrun has restarted a job whose processes had started this run already: it then
        resumes from the newest checkpoint, whatever was asked for at first.
    """
    if not distributed.restarted():
        return resume
    launched = min(distributed.all_gather_objects(launch_time()))
    starts = Path(folder) / "starts.jsonl"
    return "auto" if distributed.broadcast_from_main(lambda: started_since(starts, launched)) else resume


class RunDir:
    """A run's folder and everything that is written there. Of several processes only the first one writes.

    Args:
        folder: the run folder; made if it does not exist.
        cfg: the configuration.
        betons: {"train": Beton, ...}, the images and labels that the run depends on.

    Attributes:
        state: the checkpoint to resume from, or None.
        is_main: whether this process is the one that writes.

    Raises:
        ConfigError: the folder holds another run, or the configuration differs from the one it started with.
        OtherInputs: the images, the labels or the weights of model.init differ.
        Locked: another process trains in this folder.
        ValueError: all checkpoints are damaged.
    """

    def __init__(self, folder: str | Path, cfg: SimpleNamespace, betons: dict[str, Beton]) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.keep = cfg.training.keep_checkpoints
        self.is_main = distributed.rank() == 0
        self._writer = checkpoint.Writer()
        self._fingerprints: dict[str, str] = {}
        # Of a fine-tuning, whose checkpoints know their classes.
        names = class_names(betons["train"], betons["test"]) if "test" in betons else []
        self._label_names = {"label_names": names} if names else {}
        self.state: Any = None
        resume = effective_resume(folder, cfg.training.resume)
        path = distributed.broadcast_from_main(lambda: self._open(as_dict(cfg), resume, betons))
        if not self.is_main and path:
            self.state = checkpoint.load(path)

    def _open(self, config: dict[str, Any], resume: str, betons: dict[str, Beton]) -> Path | None:
        """Make and lock the folder, set `state` and start writing. Returns the path that `state` was read from."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file, and --out (logging.run_dir) a folder; give another")
        is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder / ".lock", f"the run folder {self.folder}")
        try:
            path, self.state = self._find_checkpoint(resume)
            self._fingerprints = {split: beton.fingerprint for split, beton in betons.items()}
            init = config["model"].get("init")
            if init and (weights := weights_file(init)).is_file():
                self._fingerprints["init"] = sha256(weights)
            if self.state is not None:
                self._check_same_config(config)
                self._check_same_inputs(betons, init)
            config_file = self.folder / "config.yaml"
            if config_file.exists() and not self._has_starts() and not is_run_config(config_file):
                raise ConfigError(
                    f"{config_file} is not of a run, and a run's would be written over it. "
                    f"Rename it, or use another --out."
                )
            left = [path for path in self.folder.iterdir() if _is_left_over(path.name)]
            for path in (*left, *self.checkpoints.glob("*.tmp")):
                path.unlink()  # a process that was killed while it wrote left it
            if self.state is not None:
                self._set_aside(self.state["loader"]["epoch"] if resume != "auto" else None)
            trackers = Trackers(self.folder, config, bool(self.state))
            record_start(self.folder / "starts.jsonl", self.state["step"] if self.state else 0)
            write_text(config_file, yaml.safe_dump(config, sort_keys=False))
            self._metrics = MetricsLog(self.folder, self.state, trackers)
            return path
        except BaseException:
            self._lock.close()
            if is_new:
                with contextlib.suppress(OSError):  # something was written: that error is the one to hear of
                    self.folder.rmdir()
            raise

    def _find_checkpoint(self, resume: str) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
        """(path, content) of the checkpoint to resume from, or (None, None)."""
        weights = [self.folder / name for name in ("backbone.safetensors", "model.safetensors")]
        made = [str(path) for path in weights if path.exists()]
        if resume in ("auto", "no") and made and self._has_starts() and not checkpoint.listing(self.checkpoints):
            raise ConfigError(
                f"{self.folder} holds a finished run, without its checkpoints. Use another --out, or delete {made[0]} "
                f"to train it anew."
            )
        if resume == "auto":
            return checkpoint.newest(self.checkpoints)
        if resume != "no":
            path = Path(resume)
            if not path.is_file():
                raise ConfigError(
                    f"training.resume: {resume} is not a checkpoint file; use auto for the newest of {self.checkpoints}"
                )
            if checkpoint.listing(self.checkpoints) and path.resolve().parent not in self._own_folders():
                raise ConfigError(
                    f"{self.folder} holds a run already, and {resume} is of another one. Use another --out."
                )
            state = checkpoint.load(path)
            if not (isinstance(state, dict) and {"config", "step", "optimizer"} <= state.keys()):
                raise ConfigError(
                    f"training.resume: {resume} holds weights alone, no training that could go on. Start one from them "
                    f"with --init {resume}."
                )
            return path, state
        if checkpoint.listing(self.checkpoints):
            raise ConfigError(
                f"{self.folder} holds a run already. Resume it: --training.resume=auto. "
                f"Or start another: --out DIR (logging.run_dir)."
            )
        return None, None

    def _has_starts(self) -> bool:
        """Whether a run was begun in the folder."""
        return (self.folder / "starts.jsonl").exists()

    def _own_folders(self) -> list[Path]:
        """Where checkpoints of this run may lie."""
        return [self.checkpoints.resolve(), *(p.resolve() for p in self.checkpoints.glob("aside_*"))]

    def _set_aside(self, epochs: int | None) -> None:
        """Put away what comes after the checkpoint that is resumed from: what is written from now on replaces it.

        Args:
            epochs: that the checkpoint holds, where best.pt may be of a later one that does not come again.
        """
        aside = checkpoint.set_aside(self.checkpoints, self.state["step"], epochs)
        if aside:
            if (self.folder / "metrics.jsonl").exists():
                shutil.copy(self.folder / "metrics.jsonl", aside)
            tqdm.write(f"{self.folder}: later checkpoints, and a copy of metrics.jsonl, are set aside in {aside}")

    def _check_same_config(self, config: dict[str, Any]) -> None:
        """Refuse to resume with another configuration: it would not be the same run."""
        before = self.state["config"]
        # Where the first weights are does not count if it is known what they are: see _check_same_inputs.
        free = {"init"} & self.state.get("data", {}).keys() & self._fingerprints.keys()
        for section in dict.fromkeys([*before, *config]):
            was, now = before.get(section, {}), config.get(section, {})
            was = {k: v for k, v in BEFORE_THE_KEY.get(section, {}).items() if k in now} | was
            for key in dict.fromkeys([*was, *now]):
                may_change = free if section == "model" else _MAY_CHANGE.get(section, ())
                if key not in may_change and was.get(key, _ABSENT) != now.get(key, _ABSENT):
                    raise ConfigError(
                        f"{self.folder} was started with {section}.{key}={was.get(key, _ABSENT)}, "
                        f"not {now.get(key, _ABSENT)}; a run resumes as it started. "
                        f"Use another --out for another run."
                    )

    def _check_same_inputs(self, betons: dict[str, Beton], init: str | None) -> None:
        """Refuse to resume with other images, labels or first weights."""
        known = self.state.get("data", {})
        if known and ("val" in known) != ("val" in betons):
            raise OtherInputs(
                f"{self.folder} was started {'with' if 'val' in known else 'without'} data.val; a run resumes as it "
                f"started. Use another --out for another run."
            )
        for name, was in known.items():
            if self._fingerprints.get(name, was) != was:
                if name == "init":
                    what = f"other weights than those of {init} (model.init)"
                else:
                    what = f"other images or labels than those of {betons[name].path} (data.{name})"
                raise OtherInputs(
                    f"{self.folder} was started with {what}; a run resumes as it started. "
                    f"Use another --out for another run."
                )

    def announce(self, text: str) -> None:
        """Say at the start what is run, and where it resumes."""
        if self.is_main:
            tqdm.write(f"{self.folder}: {text}" + (f"; resuming at step {self.state['step']}" if self.state else ""))
            sys.stdout.flush()  # a log file should begin now

    def log(self, **values: float) -> None:
        """One line of metrics.jsonl, of one step, and the same numbers for TensorBoard."""
        if self.is_main:
            self._metrics.log(values)

    def add(self, **results: float) -> None:
        """Add the results of an evaluation to the last line."""
        if self.is_main:
            self._metrics.add(results)

    def is_evaluated(self) -> bool:
        """Whether the last line of metrics.jsonl holds an evaluation; every process must call it."""
        return distributed.broadcast_from_main(lambda: self._metrics.is_evaluated())

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that hold an accuracy, so far; every process must call it."""
        path = self.folder / "metrics.jsonl"
        lines = distributed.broadcast_from_main(lambda: path.read_text(encoding="utf-8").splitlines())
        return [line for line in map(json.loads, lines) if "top1" in line]

    def save(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Begin to write a checkpoint, in a thread of its own."""
        if self.is_main:
            state = {**state, **self._label_names, "data": self._fingerprints, "line": self._metrics.line}
            self._writer.begin(checkpoint.save, self.checkpoints, state, epoch, step, self.keep)

    def save_best(self, state: dict[str, Any], step: int) -> None:
        """Write best.pt, the state with the highest top-1 so far, and return when it is written."""

        def write() -> None:
            checkpoint.check_finite(state, step)
            checkpoint.write(self.checkpoints / "best.pt", {**state, **self._label_names})

        if self.is_main:
            self._writer.begin(write)
            self._writer.wait()

    def best(self, epochs: int) -> float:
        """The top-1 of best.pt, if it is of the first `epochs` epochs; else -1, and the next evaluation replaces it."""
        path = self.checkpoints / "best.pt"

        def read() -> float:
            try:
                state = checkpoint.load(path) if path.exists() else {}
            except ValueError:  # damaged
                return -1.0
            return state["top1"] if state.get("epoch", epochs) < epochs else -1.0

        return distributed.broadcast_from_main(read)

    def wait_for_checkpoints(self) -> None:
        """Wait until the checkpoints are written.

        Raises:
            OSError: one could not be written.
            FloatingPointError: its weights are not finite.
        """
        self._writer.wait()

    def close(self) -> None:
        """Wait for the checkpoints, close the files and unlock the folder. A second call does nothing."""
        try:
            self.wait_for_checkpoints()
            if self.is_main:
                self._metrics.close()
        finally:
            if self.is_main:
                self._lock.close()
