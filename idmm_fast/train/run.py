"""The run folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/, pictures."""

import json
import signal
import time
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from ..config import ConfigError, as_dict
from . import checkpoint


def config_of(path):
    """The config.yaml of the run that `path`, a run folder or a file in it, belongs to; None if there is none."""
    path = Path(path)
    return next((f / "config.yaml" for f in (path, path.parent, path.parent.parent) if (f / "config.yaml").is_file()), None)


class Run:
    """One training run and everything it writes.

    `resume` is "no", "auto" (go on if the folder holds a checkpoint) or the path of a checkpoint. After construction
    `state` is the checkpoint to go on from, or None.
    """

    def __init__(self, folder, cfg, resume):
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.state = None
        if resume == "auto":
            self.state = checkpoint.newest(self.checkpoints)
        elif resume != "no":
            if not Path(resume).is_file():
                raise ConfigError(
                    f"training.resume: {resume} is not a checkpoint file; use auto for the newest of {self.checkpoints}"
                )
            self.state = checkpoint.load(resume)
        elif checkpoint.listing(self.checkpoints):
            raise ConfigError(
                f"{self.folder} holds a run already. Go on with it: --training.resume=auto. Or begin another: --logging.run_dir=DIR."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.state is not None:
            self._compare(as_dict(cfg))
        (self.folder / "config.yaml").write_text(yaml.safe_dump(as_dict(cfg), sort_keys=False))
        self._metrics = self._reopen(self.state["step"] if self.state else 0)
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(self.folder / "events"), purge_step=self.state["step"] if self.state else None)

    def _compare(self, config):
        """Refuse to go on with what would not be the same run."""
        for section, keys in self.state["config"].items():
            for key, value in keys.items():
                if section in ("logging", "data") or key in (
                    "resume",
                    "device",
                    "compile",
                    "amp",
                    "channels_last",
                    "checkpoint_every",
                    "checkpoint_minutes",
                    "max_skipped",
                ):
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
        tqdm.write(f"{self.folder}: {text}" + (f"; going on at step {self.state['step']}" if self.state else ""))

    def log(self, **values):
        """One line of metrics.jsonl and the same numbers for TensorBoard."""
        self._metrics.write(json.dumps(values) + "\n")
        for key, value in values.items():
            if key not in ("step", "epoch"):
                self._events.add_scalar(key, value, values["step"])

    def write_json(self, name, content):
        """A result, as JSON, whole or not at all."""
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.folder / name)

    def save(self, state, epoch, step):
        return checkpoint.save(self.checkpoints, state, epoch, step)

    def tested(self):
        """The lines of metrics.jsonl that hold an evaluation, so far."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "top1" in line]

    def save_best(self, state):
        """Beside the numbered ones: the state that tested best so far."""
        return checkpoint.write(self.checkpoints / "best.pt", state)

    def close(self):
        self._metrics.close()
        self._events.close()


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

    def __init__(self, number, path):
        super().__init__(f"stopped at your wish; checkpoint {path}. Go on with --training.resume=auto.")
        self.exit_code = 128 + number


class Meter:
    """Images per second and the share of time spent waiting for data, over the last steps (one second at least)."""

    def __init__(self, loader, images_total, done, description):
        self._loader, self._images, self._since, self._waited = loader, 0, time.perf_counter(), loader.waited
        self.images_per_s, self.wait = 0.0, 0.0
        self.bar = tqdm(
            total=images_total,
            initial=done,
            desc=description,
            unit="img",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=None,
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


def random_state():
    """torch's generators, for what the model draws itself (drop path)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
