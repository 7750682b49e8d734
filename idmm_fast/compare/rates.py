"""How many crops a second each method makes, timed in turns: what --minutes is in crops.

A machine's speed drifts by the hour, by a factor of two on some, so methods are not stopped by the clock. They are
timed first, for some seconds each in every round. A pretraining of so many minutes then sees the crops that its method
makes in them, by the median of the rounds: the same crops whenever and wherever it runs, and whatever runs beside it.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter, itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import ConfigError
from ..files import write_json
from .runner import OnFailure, OnResult, Runner
from .spec import RANDOM, SAME, RunSpec, digest
from .store import Record, pretrain_digest

ROUNDS = 3
SECONDS = 8.0  # of a timing at most, without its first steps
FIRST_STEPS = 4  # at least: they compile, and find batches that were made before them
LEAST_STEPS = 8  # of a timing, however long they take
_ENDLESS = 1 << 40  # crops

Key = tuple[str, int, str, str]
_KEY = ("dataset", "images", "sampling", "method")  # the names of a Key's parts: a method on the images of a column
_of_run: Callable[[RunSpec], Key] = attrgetter(*_KEY)
_of_record: Callable[[Record], Key] = itemgetter(*_KEY)

# Times runs, in processes of their own: gives (each run with its crops a second, sentences on what failed).
TimeAll = Callable[[list[RunSpec]], tuple[list[tuple[RunSpec, float]], list[str]]]


class Timing(Runner):
    """Times pretrainings for some seconds, in the place of the Runner that finishes them.

    Args:
        runner: That Runner.
        seconds: How long.
    """

    def __init__(self, runner: Runner, seconds: float = SECONDS) -> None:
        super().__init__(runner.config, runner.files, runner.folder, runner.threads)
        self.seconds = seconds

    def run(self, runs: list[RunSpec], on_result: OnResult, on_failure: OnFailure) -> None:
        """Tell {"crops_per_s": number} of each of `runs`."""
        import torch

        torch.set_num_threads(self.threads)
        for run in runs:
            on_result(run, {"crops_per_s": self._time(run)})

    def _time(self, run: RunSpec) -> float:
        """Crops a second of a training's steps, all that the trainer does between them included."""
        from ..beton import open_beton
        from ..train.pretraining import Pretraining
        from ..train.task import train as train_task

        train, folder, seconds = self.files.train(run), self.folder / f"timing_{os.getpid()}", self.seconds
        images, marks = len(open_beton(train)), list[float]()
        cfg = self.config.pretrain_config(run, train, images, folder)
        assert cfg is not None  # nobody times training from scratch

        class Timed(Pretraining):
            def after_step(self, step: int, progress: float) -> None:
                super().after_step(step, progress)
                marks.append(time.perf_counter())
                first = first_steps(self)
                if len(marks) >= first + LEAST_STEPS and marks[-1] - marks[first - 1] >= seconds:
                    raise _EnoughError(self.cfg, first)

        try:
            train_task(Timed, self._threaded(cfg))
        except _EnoughError as end:
            cfg, first = end.cfg, end.first
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        steps_per_epoch = -(-images // (cfg.training.batch_size * cfg.training.accumulate))
        crops = images / steps_per_epoch * sum(group["count"] for group in cfg.crops.groups)  # of a step, on average
        return crops * (len(marks) - first) / (marks[-1] - marks[first - 1])

    def name(self, run: RunSpec) -> str:
        """See Runner.name; the budget is no number that anybody asked for."""
        return f"timing {run.method} on {f'{run.images} {run.sampling} of ' * bool(run.images)}{run.dataset}"

    def log(self, run: RunSpec) -> Path:
        """See Runner.log."""
        log = super().log(run)
        return log.with_name(log.name.replace(str(run.budget), "timing"))


def first_steps(task: Any) -> int:
    """How many steps of a Pretraining are not like those after: they compile, or decode what is kept from then on."""
    rounds = task.cfg.crops.spread if task.cfg.crops.spread > 1 else int(bool(task.loader.cache.size))
    return max(FIRST_STEPS, rounds * -(-len(task.loader) // task.cfg.training.accumulate))


class _EnoughError(Exception):
    """Ends a training of the configuration `cfg` that was timed long enough, but for its `first` steps."""

    def __init__(self, cfg: SimpleNamespace, first: int) -> None:
        self.cfg, self.first = cfg, first


class Rates:
    """The crops a second in FOLDER/rates.json. All are of one machine; what they are used for may run on others.

    Args:
        folder: Of the sweep.
        runner: Whose configurations and files they are of.
        conditions: Under which this process would time: {"machine": ..., "jobs": ...}.

    Raises:
        ConfigError: The file is damaged.
    """

    def __init__(self, folder: Path, runner: Runner, conditions: Record) -> None:
        self.path, self._runner, self._conditions = folder / "rates.json", runner, conditions
        self.records: list[Record] = self._read() if self.path.exists() else []

    def _read(self) -> list[Record]:
        """The records of the file."""
        try:
            records = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            records = None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ConfigError(f"{self.path} is damaged; mend it, or delete it to time all methods anew")
        return records

    def missing(self, runs: Sequence[RunSpec]) -> list[RunSpec]:
        """What must be timed: a run without end for each method and images that have no rate.

        Where another method on the same images has one, it is among them: by how its rate has changed the new ones are
        scaled.

        Raises:
            ConfigError: The rates that there are were timed on another machine, or with another number of jobs; or a
                method has crops.schedule.
        """
        wanted = dict.fromkeys(_of_run(run) for run in runs if run.method != RANDOM)
        for key in wanted:
            self._refuse_what_changes(key)
        new = [key for key in wanted if self._find(key) is None]
        kept = [record for record in self.records if _of_record(record) not in new]
        for name, here in self._conditions.items():
            there = kept[0][name] if new and kept else here
            if there != here:
                raise ConfigError(
                    f"{self.path} has no rate of {new[0][3]} on {new[0][0]} yet, and those it has were timed with "
                    f"{name} {there}; here it is {here}. Time it there too, or give another --out"
                )
        columns = {key[:3] for key in new}
        known = {key[:3]: key for key in map(_of_record, kept) if key[:3] in columns and self._find(key)}
        endless = [_endless(key) for key in [*new, *known.values()]]
        for run in endless:
            self._runner.files.train(run)  # a subset is made here, not by several processes
        return endless

    def measure(self, missing: list[RunSpec], time_all: TimeAll) -> list[str]:
        """Time what is missing, in rounds of alternating order, and keep it; gives sentences on what failed."""
        rounds: dict[Key, list[float]] = {}
        failed: list[str] = []
        for number in range(ROUNDS):
            timed, sentences = time_all(missing[:: -1 if number % 2 else 1])
            failed += sentences
            done = {run for run, _ in timed}
            missing = [run for run in missing if run in done]  # what has failed would fail again
            for run, rate in timed:
                rounds.setdefault(_of_run(run), []).append(rate)
        known = {key: record for key in rounds if (record := self._find(key))}
        scales = {key[:3]: record["crops_per_s"] / statistics.median(rounds[key]) for key, record in known.items()}
        for key, rates in rounds.items():
            if key not in known and len(rates) == ROUNDS:
                scale = scales.get(key[:3], 1.0)
                record = {
                    **dict(zip(_KEY, key)),
                    "settings": self._settings(key),
                    "speed": self._speed(key),
                    **self._conditions,
                    "crops_per_s": round(scale * statistics.median(rates), 1),
                    "rounds": [round(rate, 1) for rate in rates],
                    "scale": round(scale, 4),
                }
                self.records = [r for r in self.records if _of_record(r) != key] + [record]
        write_json(self.path, self.records)
        return failed

    @property
    def timed_on(self) -> str:
        """The machine that they are of."""
        return str((self.records or [self._conditions])[0]["machine"])

    def with_budgets(self, runs: Sequence[RunSpec]) -> list[RunSpec]:
        """`runs` with the crops that their minutes are; those that could not be timed are left out."""
        rates = {key: record["crops_per_s"] for key in set(map(_of_run, runs)) if (record := self._find(key))}
        timed = (run for run in runs if run.method == RANDOM or _of_run(run) in rates)
        return [replace(run, budget=round(60 * run.minutes * rates.get(_of_run(run), 0.0))) for run in timed]

    def _refuse_what_changes(self, key: Key) -> None:
        """Raise ConfigError where a training of another length, or later in it, is of another speed."""
        cfg = self._runner.config.pretrain_config(_endless(key), "x", 1, "x")
        if cfg is not None and cfg.training.compile == "auto":
            raise ConfigError(
                f"{key[3]} has training.compile=auto, which depends on the number of steps, and with --minutes a "
                f"method is timed before anybody knows how many there are; write true or false"
            )
        if cfg is not None and cfg.crops.schedule:
            raise ConfigError(
                f"{key[3]} has crops.schedule, which is in fractions of training.epochs, and with --minutes a method "
                f"is timed before anybody knows how many there are; give a --budget, or leave the schedule out"
            )

    def _find(self, key: Key) -> Record | None:
        """The rate of a method on some images, where it is known."""
        return next((r for r in self.records if _of_record(r) == key and self._is_valid(r)), None)

    def _is_valid(self, record: Record) -> bool:
        """Whether a rate is of the configuration and images as they are now."""
        try:
            key = _of_record(record)
            same_speed = record.get("speed") in (None, self._speed(key))  # files of before have none
            return bool(same_speed and record["settings"] == self._settings(key))
        except ConfigError:  # the method is no longer there
            return False

    def _settings(self, key: Key) -> str:
        """What the rate and the result of a training depend on."""
        return pretrain_digest(_endless(key), self._runner.config, self._runner.files)

    def _speed(self, key: Key) -> str:
        """What the rate alone depends on."""
        cfg = self._runner.config.pretrain_config(_endless(key), "x", 1, "x")
        assert cfg is not None  # nobody times training from scratch
        training, data = cfg.training, cfg.data
        return digest(training.compile, training.device, training.channels_last, data.num_workers, data.cache)


def _endless(key: Key) -> RunSpec:
    """A run that does not end by itself."""
    return RunSpec(*key, seed=0, budget=_ENDLESS, target=SAME, finetune_budget=1)
