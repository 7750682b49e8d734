"""A sweep over several processes, one per pretraining: its memory can be told, and its death harms no other.

A process that dies is started once more, from its last checkpoint. Results go to results.jsonl as they come. Of several
processes at a time each is pinned to cores of its own, so that all have the same.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..errors import Stopped
from ..limits import cores, processor
from ..lock import Lock
from .rates import ROUNDS, SECONDS, Rates, Timing
from .runner import Runner
from .runs import off_budget
from .spec import RunSpec, SweepConfig
from .store import RECIPE, Record, ResultStore, settings_digest
from .subsets import DatasetFiles

Group = list[RunSpec]  # runs that share a pretraining


def run_sweep(
    runs: list[RunSpec], config: SweepConfig, data: Path | str, out: Path | str, jobs: int = 1
) -> tuple[list[Record], list[str]]:
    """Do those of `runs` that are not done.

    Args:
        runs: What is wanted.
        config: The sweep file.
        data: Folder of the betons.
        out: Folder of results.jsonl and of the run folders.
        jobs: Pretrainings at a time, which share the cores evenly.

    Returns:
        All records of results.jsonl, and a sentence about each run that failed.

    Raises:
        ConfigError, BetonError, FileNotFoundError: Before anything begins.
        Stopped: After Ctrl-C or SIGTERM.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out / ".lock", f"the sweep in {out}"):
        files = DatasetFiles(data, out / "runs" / "subsets")
        runner = Runner(config, files, out / "runs", max(1, cores() // jobs))
        store = ResultStore(out)
        (out / "runs").mkdir(exist_ok=True)
        conditions = {
            "jobs": jobs,
            "machine": f"{processor()}, {runner.threads} core{'s' * (runner.threads > 1)} a pretraining",
        }
        untimed, timed_on = list[str](), {}
        if any(run.minutes for run in runs):
            rates = Rates(out, runner, conditions)
            untimed = _measure_rates(rates, runs, runner, jobs)
            runs = rates.with_budgets(runs)
            timed_on = {"timed_on": rates.timed_on}
        settings = {run: settings_digest(run, config, files) for run in runs}
        for sentence in dict.fromkeys(sentence for run in runs for sentence in off_budget(run, config, files)):
            tqdm.write(sentence)
        groups = _pending_groups(settings, store, files)
        pending = sum(map(len, groups))
        with _StopSignals() as stop, _Pool(runner, groups, jobs) as pool, _Progress(len(settings), pending) as progress:
            for run, result in pool.results(stop):
                record = {
                    **asdict(run),
                    "base": config.base_method(run.method),
                    "settings": settings[run],
                    "recipe": RECIPE,
                    **result,
                    **conditions,
                    **(timed_on if run.minutes else {}),
                    "finished": round(time.time()),
                }
                store.add(record)
                progress.show(run, record)
        if stop.count:
            raise Stopped(f"stopped; {len(store.records)} runs are in {store.path}. The same command resumes.")
        return store.records, untimed + pool.failed


def _measure_rates(rates: Rates, runs: list[RunSpec], runner: Runner, jobs: int) -> list[str]:
    """Time the methods that have no rate yet; gives sentences on what failed."""
    missing = rates.missing(runs)
    if not missing:
        return []
    timing = Timing(runner, min(SECONDS, 60 * max(run.minutes for run in runs)))
    tqdm.write(
        f"timing {len(missing)} pretrainings, {ROUNDS} times {timing.seconds:g} s each: let the machine do nothing else"
    )
    with _StopSignals() as stop, tqdm(total=ROUNDS * len(missing), desc="timing", disable=None) as bar:

        def time_all(queue: list[RunSpec]) -> tuple[list[tuple[RunSpec, float]], list[str]]:
            timed = []
            with _Pool(timing, [[run] for run in queue], jobs) as pool:
                for run, result in pool.results(stop):
                    timed.append((run, result["crops_per_s"]))
                    bar.update()
            if stop.count:
                raise Stopped("stopped before all methods were timed; the same command times them anew")
            return timed, pool.failed

        return rates.measure(missing, time_all)


def _pending_groups(settings: dict[RunSpec, str], store: ResultStore, files: DatasetFiles) -> list[Group]:
    """The runs that are not done, by pretraining; their subsets are made."""
    done = store.done()
    groups: dict[tuple, Group] = {}
    for run, digest in settings.items():
        if (run, digest) not in done:
            files.train(run)
            groups.setdefault((run.pretrain_key, digest.split("-")[0]), []).append(run)
    return list(groups.values())


class _StopSignals:
    """Counts SIGINT and SIGTERM in a `with` block, instead of letting them end the process."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "_StopSignals":
        self._old = {number: signal.signal(number, self._add) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _add(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


@dataclass
class _Worker:
    """A process and the runs that it does."""

    process: BaseProcess
    group: Group
    log: Path
    place: int  # which of the jobs' cores it has
    ended: set[RunSpec] = field(default_factory=set)  # done or failed

    @property
    def left(self) -> Group:
        """The runs that have not ended."""
        return [run for run in self.group if run not in self.ended]


class _Pool:
    """Groups of runs, `jobs` processes at a time. `failed` says what failed, and why."""

    def __init__(self, runner: Runner, groups: list[Group], jobs: int) -> None:
        self.failed: list[str] = []
        self._runner, self._waiting, self._jobs = runner, groups, jobs
        self._cores = cores_of_jobs(sorted(os.sched_getaffinity(0)), runner.threads, jobs)
        self._workers: dict[Connection, _Worker] = {}
        self._restarted: set[RunSpec] = set()
        self._context = multiprocessing.get_context("forkserver")
        # not numba: LLVM's state does not survive a fork
        self._context.set_forkserver_preload(["torch", "timm", "sklearn.pipeline", "matplotlib.figure"])

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers.values():
            worker.process.kill()

    def results(self, stop: _StopSignals) -> Iterator[tuple[RunSpec, Record]]:
        """Each run's result as it comes. The first stop signal is passed on, at the second nothing is waited for."""
        while (self._waiting and not stop.count) or self._workers:
            while self._waiting and len(self._workers) < self._jobs and not stop.count:
                self._start(self._waiting.pop(0))
            for pipe in wait(list(self._workers), timeout=0.5):
                assert isinstance(pipe, Connection)
                message = self._receive(pipe, retry=not stop.count)
                if message is not None:
                    yield message
            if stop.count:
                for worker in self._workers.values():
                    worker.process.terminate()
            if stop.count > 1:
                break

    def _start(self, group: Group) -> None:
        """A process for these runs."""
        log = self._runner.log(group[0])
        place = min(set(range(self._jobs)) - {worker.place for worker in self._workers.values()})
        ours, theirs = self._context.Pipe(duplex=False)
        args = (self._runner, group, log, theirs, self._cores[place])
        process = self._context.Process(target=_worker_main, args=args)
        process.start()
        theirs.close()
        self._workers[ours] = _Worker(process, group, log, place)

    def _receive(self, pipe: Connection, retry: bool) -> tuple[RunSpec, Record] | None:
        """A result from a worker; None where it tells of a failure or has ended."""
        worker = self._workers[pipe]
        try:
            run, result, error = pipe.recv()
        except EOFError:
            worker.process.join()
            del self._workers[pipe]
            if retry:
                self._restart(worker)
            return None
        if error:
            self._fail(worker, [run] if run else worker.left, error)
            return None
        worker.ended.add(run)
        return run, result

    def _fail(self, worker: _Worker, runs: Group, error: str) -> None:
        """Note that these runs of a worker have failed."""
        worker.ended.update(runs)
        self.failed += [f"{self._runner.name(run)}: {error}; see {worker.log}" for run in runs]

    def _restart(self, worker: _Worker) -> None:
        """Once more what a process left undone that died, from its last checkpoint; the second time it has failed."""
        left = worker.left
        if not left:
            return
        code = worker.process.exitcode or 0
        end = f"ended by {f'signal {-code}' if code < 0 else f'exit code {code}'}"
        if left[0] in self._restarted:
            self._fail(worker, left, f"{end} (signal 9 usually means out of memory; --jobs 1 needs less)")
            return
        self._restarted.add(left[0])
        self._waiting.append(left)
        tqdm.write(f"{self._runner.name(left[0])} {end}; it is started once more")


class _Progress:
    """A progress bar, and a row for every run that is done."""

    def __init__(self, total: int, pending: int) -> None:
        self._bar = tqdm(
            total=total, initial=total - pending, desc="runs", unit="run", disable=None, dynamic_ncols=True
        )
        self._is_first = True

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, run: RunSpec, record: Record) -> None:
        """Print a row of what a run found."""
        if self._is_first:
            self._row("run", "knn20", "linear", "top1", "crops/s")
            self._is_first = False
        speed = f"{record['crops'] / record['pretrain_seconds']:.0f}" if record["crops"] else "-"
        measures = (f"{record[m]:.2f}" if m in record else "-" for m in ("knn20", "linear", "top1"))
        self._row(str(run), *measures, speed)
        self._bar.update()

    @staticmethod
    def _row(name: str, *values: str) -> None:
        tqdm.write(f"{name:<64}" + "".join(f"{value:>9}" for value in values))


def cores_of_jobs(available: list[int], threads: int, jobs: int) -> list[list[int]]:
    """For each job the numbers of the cores that are its own, `threads` of those `available`.

    All of them for a single job, and where there are not enough.
    """
    if jobs == 1 or threads * jobs > len(available):
        return [available] * jobs
    return [available[job * threads : (job + 1) * threads] for job in range(jobs)]


def _worker_main(runner: Runner, group: Group, log: Path, pipe: Any, own_cores: list[int]) -> None:
    """A worker: does these runs on these cores, its output to a file; it ends when its parent does."""
    os.setsid()  # Ctrl-C is for the parent, which passes it on
    os.sched_setaffinity(0, own_cores)  # before there are threads, which have it from here
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(run: RunSpec | None, error: Exception) -> None:
        """Of a run that failed, or of all that are left."""
        traceback.print_exception(error)
        pipe.send((run, None, f"{type(error).__name__}: {error}"))

    try:
        runner.run(group, lambda run, result: pipe.send((run, result, None)), tell)
    except Stopped:
        pass
    except Exception as error:
        tell(None, error)


def _end_with_parent() -> None:
    """Wait for the parent process to end, then stop this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
