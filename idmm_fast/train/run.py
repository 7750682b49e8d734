"""The run folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/, pictures."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from ..beton.format import RAW
from ..config import ConfigError, as_dict
from . import checkpoint, distributed


def config_of(path):
    """The config.yaml of the run that `path`, a run folder or a file in it, belongs to; None if there is none."""
    path = Path(path)
    return next((f / "config.yaml" for f in (path, path.parent, path.parent.parent) if (f / "config.yaml").is_file()), None)


def write_json(path, content):
    """A result, as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def once(path, make):
    """The JSON in `path`, made by `make()` if it is not there: what is done is not done again."""
    if not Path(path).exists():
        write_json(path, make())
    return json.loads(Path(path).read_text())


# What may change from one part of a run to the next.
_FREE = ("resume", "device", "compile", "amp", "channels_last", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "max_skipped")


class Run:
    """One training run and everything it writes. Of several processes only the first one writes.

    `resume` is "no", "auto" (go on if the folder holds a checkpoint) or the path of a checkpoint. After construction
    `state` is the checkpoint to go on from, or None.
    """

    def __init__(self, folder, cfg, resume):
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.keep = cfg.training.keep_checkpoints
        self.main = distributed.rank() == 0
        self._writer = checkpoint.Writer()
        path = distributed.from_main(lambda: self._begin(as_dict(cfg), resume))
        if not self.main:
            self.state = checkpoint.load(path) if path else None
            return
        self._metrics = self._reopen(self.state["step"] if self.state else 0)
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(self.folder / "events"), purge_step=self.state["step"] if self.state else None)

    def _begin(self, config, resume):
        """Make the folder; set `state`, and return the path that it was read from."""
        path, self.state = None, None
        if resume == "auto" or (resume == "no" and distributed.restarted()):
            path, self.state = checkpoint.newest(self.checkpoints)
        elif resume != "no":
            if not Path(resume).is_file():
                raise ConfigError(
                    f"training.resume: {resume} is not a checkpoint file; use auto for the newest of {self.checkpoints}"
                )
            path, self.state = resume, checkpoint.load(resume)
        elif checkpoint.listing(self.checkpoints):
            raise ConfigError(
                f"{self.folder} holds a run already. Go on with it: --training.resume=auto. Or begin another: --logging.run_dir=DIR."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.checkpoints.glob("*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        if self.state is not None:
            self._compare(config)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def _compare(self, config):
        """Refuse to go on with what would not be the same run."""
        for section, keys in self.state["config"].items():
            for key, value in keys.items():
                if section in ("logging", "data", "ladder", "probe") or key in _FREE:
                    continue
                if config.get(section, {}).get(key) != value:
                    raise ConfigError(
                        f"{self.folder} was begun with {section}.{key}={value}, not {config.get(section, {}).get(key)}; "
                        f"a run goes on as it began. Use another --logging.run_dir for another run."
                    )

    def _reopen(self, step):
        path = self.folder / "metrics.jsonl"
        kept = []
        if step and path.exists():  # lines after the checkpoint belong to steps that will be made again
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] < step:
                        kept.append(line)
                except (ValueError, KeyError):
                    break  # a last line that was cut short
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(path)
        return open(path, "a", buffering=1)

    def announce(self, text):
        """Say at the start what is run, and where it goes on."""
        self.say(f"{self.folder}: {text}" + (f"; going on at step {self.state['step']}" if self.state else ""))

    def say(self, text):
        """Print a line above the progress bar."""
        if self.main:
            tqdm.write(text)

    def log(self, **values):
        """One line of metrics.jsonl and the same numbers for TensorBoard."""
        if not self.main:
            return
        self._metrics.write(json.dumps(values) + "\n")
        for key, value in values.items():
            if key not in ("step", "epoch"):
                self._events.add_scalar(key, value, values["step"])

    def save(self, state, epoch, step):
        """Begin to write a checkpoint, in a thread of its own."""
        if self.main:
            self._writer.begin(checkpoint.save, self.checkpoints, state, epoch, step, self.keep)

    def save_best(self, state):
        """Beside the numbered ones: the state that tested best so far."""
        if self.main:
            self._writer.begin(checkpoint.write, self.checkpoints / "best.pt", state)

    def written(self):
        """Wait until the checkpoints are written. Raises OSError if they could not be."""
        self._writer.wait()

    def tested(self):
        """The lines of metrics.jsonl that hold an evaluation, so far."""
        lines = distributed.from_main(lambda: (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in map(json.loads, lines) if "top1" in line]

    def close(self):
        if self.main:
            self._metrics.close()
            self._events.close()
        self.written()


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that the loop looks at between two steps; a second Ctrl-C stops at once."""

    def __enter__(self):
        self.signal = 0
        try:
            self._old = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            self._old = {}
        return self

    def _set(self, number, frame):
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *exc):
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint."""

    def __init__(self, number, folder):
        super().__init__(f"stopped at your wish; checkpoint written to {folder}. Go on with --training.resume=auto.")
        self.exit_code = 128 + number


class Meter:
    """Images per second and the share of time spent waiting for data, over the last steps (one second at least)."""

    def __init__(self, loader, images_total, done, description):
        self._loader, self._images, self._since, self._waited = loader, 0, time.perf_counter(), loader.waited
        self._epoch, self._advised = (self._since, self._waited), False
        self.images_per_s, self.wait = 0.0, 0.0
        self.bar = tqdm(
            total=images_total,
            initial=done,
            desc=description,
            unit="img",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=True if distributed.rank() else None,
        )

    def step(self, images):
        self._images += images
        elapsed = time.perf_counter() - self._since
        if elapsed >= 1.0 or self.images_per_s == 0:
            self.images_per_s = self._images / elapsed
            self.wait = min(1.0, (self._loader.waited - self._waited) / elapsed)
            self._images, self._since, self._waited = 0, time.perf_counter(), self._loader.waited
        self.bar.update(images)

    def show(self, **values):
        self.bar.set_postfix({**values, "wait": f"{self.wait:.0%}"}, refresh=False)

    def end_epoch(self):
        """Say once, if an epoch waited for data more than a twentieth of its time, what to turn."""
        (since, waited), self._epoch = self._epoch, (time.perf_counter(), self._loader.waited)
        elapsed, waiting = self._epoch[0] - since, self._epoch[1] - waited
        if elapsed > PATIENCE and waiting > 0.05 * elapsed and not self._advised and distributed.rank() == 0:
            self._advised = True
            tqdm.write(f"{waiting / elapsed:.0%} of this epoch was spent waiting for data. {advice(self._loader)}")


PATIENCE = 10.0  # seconds an epoch takes at least to say something about waiting


def advice(loader):
    """What makes this loader faster, as sentences."""
    cores = len(os.sched_getaffinity(0))
    turns = []
    if loader.num_workers * distributed.local_world() < cores:
        turns.append(f"give the loader more of the {cores} cores (--data.num_workers, now {loader.num_workers})")
    if torch.cuda.is_available() and not hasattr(loader, "device"):
        turns.append("make the views on the GPU (--data.views_on=device)")
    if (loader.beton.mode != RAW).any():
        turns.append("store pixels instead of JPEGs (write_datasets.py --mode raw)")
    longer, largest = int(np.median(np.maximum(loader.beton.width, loader.beton.height))), max(view.size for view in loader.views)
    if longer > 4 * largest:
        turns.append(f"store smaller images (write_datasets.py --max-resolution {4 * largest}; now half of them have more than {longer} pixels a side)")
    return "To have it faster: " + "; or ".join(turns or ["use a machine with more cores for each GPU"]) + "."
