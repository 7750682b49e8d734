"""Weights & Biases and MLflow: the numbers of metrics.jsonl there too, where runs are looked at in one place.

Each is imported only where it is asked for. A run that resumes continues its own run there: trackers.json in the run
folder says which. Numbers are sent in a thread, so that training never waits for a network.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..config import ConfigError
from ..errors import Stopped
from ..files import write_json

PACKAGES = ("wandb", "mlflow")  # and keys of the section `logging`
SEND_SECONDS = 5.0  # from one sending to the next, and to another try
CLOSE_SECONDS = 60.0  # the longest that the end of a run waits for what is left
MOST_ROWS = 100_000  # kept while nothing can be sent; the oldest are dropped
_ROWS_A_REQUEST, _PARAMS_A_REQUEST = 50, 100  # MLflow takes 1000 metrics, and 100 params

Row = tuple[float, dict[str, float], int]  # when (seconds since 1970), the numbers, their step


class Tracker(Protocol):
    """What gets the metrics.

    Attributes:
        id: names the run there.
    """

    id: str

    def send(self, rows: list[Row]) -> None:
        """Send the numbers of steps, and of evaluations after them."""

    def close(self, outcome: str) -> None:
        """End the run as "FINISHED", "KILLED" or "FAILED"."""


class WandbTracker:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run folder, for `wandb sync`.

    Neither code, git's state nor what is printed goes there.

    Args:
        project: its project.
        name: what it is called.
        folder: the run folder.
        config: what it shows as the configuration.
        known: the run to continue; None: a new one.
    """

    def __init__(self, project: str, name: str, folder: Path, config: dict[str, Any], known: str | None) -> None:
        import wandb

        continued = {"id": known, "resume": "allow", "allow_val_change": True} if known else {}
        settings = wandb.Settings(disable_git=True, disable_code=True, console="off")
        self._run = wandb.init(
            project=project, name=name, dir=str(folder), config=config, settings=settings, **continued
        )
        self.id = self._run.id
        # Its own counter refuses steps that a resumed run makes again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def send(self, rows: list[Row]) -> None:
        """See Tracker."""
        for _, values, step in rows:
            self._run.log({**values, "step": step})

    def close(self, outcome: str) -> None:
        """See Tracker."""
        self._run.finish(exit_code=int(outcome != "FINISHED"))


class MlflowTracker:
    """A run of MLflow, at MLFLOW_TRACKING_URI; for the other arguments see WandbTracker.

    Args:
        experiment: its experiment, which is made if it is not there.
    """

    def __init__(self, experiment: str, name: str, folder: Path, config: dict[str, Any], known: str | None) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric: Callable[..., Any] = Metric
        self._client = mlflow.MlflowClient()
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self.id = self._client.create_run(number, run_name=name).info.run_id
        params = [Param(f"{s}.{key}", str(value)) for s, keys in config.items() for key, value in keys.items()]
        for first in range(0, len(params), _PARAMS_A_REQUEST):
            self._client.log_batch(self.id, params=params[first : first + _PARAMS_A_REQUEST])

    def send(self, rows: list[Row]) -> None:
        """See Tracker."""
        made = [self._metric(k, float(v), int(1000 * at), step) for at, values, step in rows for k, v in values.items()]
        self._client.log_batch(self.id, metrics=made)

    def close(self, outcome: str) -> None:
        """See Tracker."""
        self._client.set_terminated(self.id, outcome)


def check_installed(logging: Any) -> None:
    """Raise ConfigError where the section `logging` asks for a package that is not installed, or broken."""
    for name in PACKAGES:
        if getattr(logging, name, None) is None:
            continue
        found = None
        try:
            found = importlib.import_module(name)
        except ImportError:
            pass
        except Exception as error:  # of whatever it runs when it is imported
            raise ConfigError(f"logging.{name}: {name} can't be imported: {type(error).__name__}: {error}") from error
        if not getattr(found, "__file__", None):  # a folder of that name, as wandb makes one, is importable too
            raise ConfigError(f"logging.{name} needs the package {name}: pip install -e '.[{name}]'")


class _Sender:
    """Sends rows to a tracker in a thread of its own; what can't be sent is kept, and tried again."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self._rows: deque[Row] = deque(maxlen=MOST_ROWS)
        self._batch: list[Row] = []  # taken from there, and not sent yet
        self._is_over, self._outcome, self._is_warned = threading.Event(), "FINISHED", False
        self._thread = threading.Thread(target=self._work, name=f"idmm-{name}", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        """Take a row to send."""
        self._rows.append(row)

    def close(self, outcome: str) -> None:
        """Send what is left and end the run, if that takes no longer than CLOSE_SECONDS."""
        self._outcome = outcome
        self._is_over.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"did not take all numbers within {CLOSE_SECONDS:g} s")

    def _work(self) -> None:
        is_over = False
        while True:
            is_over = is_over or self._is_over.wait(SEND_SECONDS)
            try:
                while self._batch or self._rows:
                    while self._rows and len(self._batch) < _ROWS_A_REQUEST:
                        self._batch.append(self._rows.popleft())
                    self.tracker.send(self._batch)
                    self._batch = []
                if is_over:
                    self.tracker.close(self._outcome)
                    return
            except Exception as error:  # each has many kinds; a network that is away must not end a training of days
                if not self._is_warned:
                    self._is_warned = True
                    self._warn(f"failed ({type(error).__name__}: {error}), and is tried again")
                if is_over:
                    time.sleep(SEND_SECONDS)

    def _warn(self, what: str) -> None:
        warnings.warn(f"logging.{self.name} {what}; metrics.jsonl has all numbers", stacklevel=3)


class Trackers:
    """All that the section `logging` asks for.

    Args:
        folder: the run folder.
        config: the configuration, as nested dicts.
        resumed: whether the run goes on from a checkpoint; a tracker that can't be reached is then left out.

    Raises:
        ConfigError: one can't be begun, in a new run.
    """

    def __init__(self, folder: Path, config: dict[str, Any], resumed: bool) -> None:
        asked, path = config.get("logging", {}), folder / "trackers.json"
        known = json.loads(path.read_text(encoding="utf-8")) if resumed and path.exists() else {}
        kinds: dict[str, Callable[..., Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
        is_part = re.fullmatch(r"(fold|stage)_\d+", folder.name)
        title = f"{folder.parent.name}/{folder.name}" if is_part else folder.name
        self._senders: list[_Sender] = []
        self._outer = sys.exc_info()[1]  # that a caller handles just now
        for name, kind in kinds.items():
            if asked.get(name) is None:
                continue
            try:
                self._senders.append(_Sender(name, kind(asked[name], title, folder, config, known.get(name))))
            except Exception as error:  # each has many kinds of its own
                what = f"logging.{name}={asked[name]}: {type(error).__name__}: {error}"
                if not resumed:
                    self.close()
                    raise ConfigError(what) from error
                warnings.warn(f"{what}; the run goes on without it, and metrics.jsonl has all numbers", stacklevel=2)
        if self._senders:
            write_json(path, known | {sender.name: sender.tracker.id for sender in self._senders})

    def log(self, values: dict[str, float], step: int) -> None:
        """Give all of them the numbers of a step, or of an evaluation after it."""
        for sender in self._senders:
            sender.add((time.time(), values, step))

    def close(self) -> None:
        """End the runs there; where an exception has come up since they began, as killed by a signal or failed."""
        error = sys.exc_info()[1]
        error = None if error is self._outer else error
        outcome = (
            "FINISHED" if error is None else "KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED"
        )
        for sender in self._senders:
            sender.close(outcome)
        self._senders = []
