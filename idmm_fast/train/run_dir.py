"""The run folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/, pictures."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from ..config import ConfigError, as_dict
from ..lock import Lock
from ..runtime import distributed
from . import checkpoint

# What a step writes to metrics.jsonl; what else a line holds comes from an evaluation after it.
STEP_KEYS = {"epoch", "step", "loss", "nonfinite_steps", "lr", "images_per_s", "data_wait"}


def record(path, step):
    """Add a line to `path`: when, where and with what the run was started, at which step."""
    from .. import __file__ as here

    def git(*args):
        done = subprocess.run(["git", "-C", Path(here).parent, *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = changed = None
    with contextlib.suppress(OSError):  # no git here
        if git(
            "ls-files", "--error-unmatch", here
        ):  # a checkout of this project, not a folder that happens to lie in one of another
            commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    line = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": [sys.executable, *sys.argv],
        "commit": commit,
        "changed": changed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in ("idmm-fast", "torchvision", "timm", "ffcv", "numpy", "numba")},
        },
        "host": platform.node(),
        "processes": distributed.world(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _launched():
    """When the process that started this one (torchrun) began, in seconds since 1970."""
    ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _begun_since(path, when):
    """Whether the last start that the starts.jsonl `path` tells was after `when`, to its two seconds."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["started"]
        return datetime.fromisoformat(last).timestamp() > when - 2
    return False


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# What may change from one part of a run to the next, since no number depends on it but for rounding. Everything else may not. Of data.train and
# data.test the images count, not where they are.
_FREE = {
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
    "data": ("train", "test", "num_workers", "on_error"),
    "logging": ("run_dir",),
    "online_eval": ("every", "linear"),
    "progressive": ("stages",),
}
_ABSENT = "nothing (there was no such key)"


def _write(descriptor, data, at):
    """Write all of `data` at byte `at`; a disk that is nearly full takes a part of it, and refuses the rest."""
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


class OtherImages(ConfigError):
    """A run can't go on, since the images or labels are not those that it was begun with."""


class Run:
    """One training run and everything it writes. Of several processes only the first one writes.

    `resume` is "no", "auto" (go on if the folder holds a checkpoint) or the path of a checkpoint. betons: {"train": Beton, ...}, whose images
    and labels the run depends on. After construction `state` is the checkpoint to go on from, or None.

    Raises ConfigError (OtherImages for other images), and ValueError for damaged checkpoints.
    """

    def __init__(self, folder, cfg, resume, betons):
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.keep = cfg.training.keep_checkpoints
        self.main = distributed.rank() == 0
        self._writer = checkpoint.Writer()
        # If torchrun started a job again whose processes had begun this run, it goes on from the newest checkpoint, whatever was asked at first.
        launched = min(distributed.all_gather_objects(_launched())) if distributed.restarted() else None
        path = distributed.broadcast_from_main(lambda: self._begin(as_dict(cfg), resume, betons, launched))
        if not self.main:
            self.state = checkpoint.load(path) if path else None
            return
        try:
            self._reopen()
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(
                str(self.folder / "events"), purge_step=self.state["step"] if self.state else None
            )
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, config, resume, betons, launched):
        """Make the folder and lock it; set `state`, and return the path that it was read from."""
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder / ".lock", f"the run folder {self.folder}")
        try:
            return self._read(config, resume, betons, launched)
        except BaseException:
            self._lock.close()
            if new:
                with contextlib.suppress(OSError):  # something was written: that error is the one to hear of
                    self.folder.rmdir()
            raise

    def _read(self, config, resume, betons, launched):
        path, self.state = None, None
        if launched is not None and _begun_since(self.folder / "starts.jsonl", launched):
            resume = "auto"
        if resume == "auto":
            path, self.state = checkpoint.newest(self.checkpoints)
        elif resume != "no":
            path = Path(resume)
            if not path.is_file():
                raise ConfigError(
                    f"training.resume: {resume} is not a checkpoint file; use auto for the newest of {self.checkpoints}"
                )
            if checkpoint.listing(self.checkpoints) and path.resolve().parent not in self._own_folders():
                raise ConfigError(
                    f"{self.folder} holds a run already, and {resume} is of another one. Use another --logging.run_dir."
                )
            self.state = checkpoint.load(path)
        elif checkpoint.listing(self.checkpoints):
            raise ConfigError(
                f"{self.folder} holds a run already. Go on with it: --training.resume=auto. Or begin another: --logging.run_dir=DIR."
            )
        self.data = {split: beton.fingerprint for split, beton in betons.items()}
        if self.state is not None:
            self._compare(config, betons)
        for left in self.checkpoints.glob("*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        if self.state is not None:
            self._set_aside()
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        record(self.folder / "starts.jsonl", self.state["step"] if self.state else 0)
        return path

    def _own_folders(self):
        """Where checkpoints of this run may lie."""
        return [self.checkpoints.resolve(), *(p.resolve() for p in self.checkpoints.glob("aside_*"))]

    def _set_aside(self):
        """Put away what comes after the checkpoint that is gone on from: what is written from here on takes its place."""
        aside = checkpoint.set_aside(self.checkpoints, self.state["step"])
        if aside:
            if (self.folder / "metrics.jsonl").exists():
                shutil.copy(self.folder / "metrics.jsonl", aside)
            tqdm.write(f"{self.folder}: later checkpoints, and a copy of metrics.jsonl, are set aside in {aside}")

    def _compare(self, config, betons):
        """Refuse to go on with what would not be the same run."""
        before = self.state["config"]
        for section in dict.fromkeys([*before, *config]):
            was, now = before.get(section, {}), config.get(section, {})
            for key in dict.fromkeys([*was, *now]):
                if key not in _FREE.get(section, ()) and was.get(key, _ABSENT) != now.get(key, _ABSENT):
                    raise ConfigError(
                        f"{self.folder} was begun with {section}.{key}={was.get(key, _ABSENT)}, not {now.get(key, _ABSENT)}; "
                        f"a run goes on as it began. Use another --logging.run_dir for another run."
                    )
        for split, was in self.state.get("data", {}).items():
            if split in self.data and self.data[split] != was:
                raise OtherImages(
                    f"{self.folder} was begun with other images or labels than those of {betons[split].path} (data.{split}); a run goes on as it "
                    f"began. Use another --logging.run_dir for another run."
                )

    def _reopen(self):
        """Open metrics.jsonl behind the line of the last step that the checkpoint holds; later steps will be made again."""
        path, kept = self.folder / "metrics.jsonl", []
        step = self.state["step"] if self.state else 0
        if step and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError):  # a line that was cut short
                    if json.loads(line)["step"] < step:
                        kept.append(line)
        self._line = json.loads(kept[-1]) if kept else {}
        if (
            step and self._line.get("step") != step - 1 and "line" in self.state
        ):  # it is lost, or this is another folder
            self._line = self.state["line"]
            kept.append(json.dumps(self._line))
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._metrics = open(path, "r+b", buffering=0)  # noqa: SIM115  closed by close()
        end = self._metrics.seek(0, os.SEEK_END)
        self._start = end - len(kept[-1].encode()) - 1 if kept else 0  # of the last line

    def announce(self, text):
        """Say at the start what is run, and where it goes on."""
        self.say(f"{self.folder}: {text}" + (f"; going on at step {self.state['step']}" if self.state else ""))

    def say(self, text):
        """Print a line above the progress bar."""
        if self.main:
            tqdm.write(text)

    def log(self, **values):
        """One line of metrics.jsonl, of one step, and the same numbers for TensorBoard."""
        if self.main:
            self._line, self._start = values, self._metrics.seek(0, os.SEEK_END)
            _write(self._metrics.fileno(), (json.dumps(values) + "\n").encode(), self._start)
            self._show(values)

    def add(self, **results):
        """Add the results of an evaluation to the last line."""
        if self.main:
            self._line = self._line | results
            _write(
                self._metrics.fileno(), (json.dumps(self._line) + "\n").encode(), self._start
            )  # over its shorter self
            self._show(results)

    def _show(self, values):
        for key, value in values.items():
            if key not in ("step", "epoch"):
                self._events.add_scalar(key, value, self._line["step"])

    def is_evaluated(self):
        """Whether the last line holds more than its step gave: the results of the evaluation after it."""
        return distributed.broadcast_from_main(lambda: bool(set(self._line) - STEP_KEYS))

    def save(self, state, epoch, step):
        """Begin to write a checkpoint, in a thread of its own."""
        if self.main:
            state = {**state, "data": self.data, "line": self._line}
            self._writer.begin(checkpoint.save, self.checkpoints, state, epoch, step, self.keep)

    def save_best(self, state, step):
        """Beside the numbered ones: the state that tested best so far. Returns when it is written."""
        if self.main:
            self._writer.begin(
                lambda: (checkpoint.check_finite(state, step), checkpoint.write(self.checkpoints / "best.pt", state))
            )
            self._writer.wait()

    def best(self, epochs):
        """The top-1 of best.pt, if it is of the first `epochs` epochs; else -1, and the next evaluation takes its place."""
        path = self.checkpoints / "best.pt"

        def read():
            try:
                state = checkpoint.load(path) if path.exists() else {}
            except ValueError:  # damaged
                return -1.0
            return state["top1"] if state.get("epoch", epochs) < epochs else -1.0

        return distributed.broadcast_from_main(read)

    def written(self):
        """Wait until the checkpoints are written. Raises OSError if they could not be, FloatingPointError if they hold no numbers."""
        self._writer.wait()

    def tested(self):
        """The lines of metrics.jsonl that hold an accuracy, so far."""
        lines = distributed.broadcast_from_main(
            lambda: (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        )
        return [line for line in map(json.loads, lines) if "top1" in line]

    def close(self):
        """End the run: its files are closed, its checkpoints written, its lock let go of. A second call does nothing."""
        try:
            self.written()
            if self.main:
                self._metrics.close()
                self._events.close()
        finally:
            if self.main:
                self._lock.close()
