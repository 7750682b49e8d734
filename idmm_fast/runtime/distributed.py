"""The processes of a run, as torchrun starts them: RANK, WORLD_SIZE and LOCAL_RANK in the environment.

Without these there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from .. import limits
from ..config import ConfigError

HEARTBEAT_SECONDS = 2.0  # between two heartbeats: a process that dies is noticed that soon, at hardly any cost
HEARTBEAT_TIMEOUT = 120.0  # seconds without one until a process counts as lost; a network may be away for some time
EXIT_GRACE_SECONDS = 20.0  # in which the main thread may end by itself when another process is lost
# For waits that an evaluation in process 0 makes long. That the others live is watched by the heartbeat.
_LONG_WAIT = timedelta(days=30)

_long_wait_group: dist.ProcessGroup | None = None  # gloo, with that timeout
_restarted = False  # what restarted() says among several processes

Thing = TypeVar("Thing")


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is. Process 0 writes the run folder and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process is the one that prints; also before and after `process_group`."""
    return int(os.environ.get("RANK", 0)) == 0


def local_world() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def cores() -> int:
    """How many cores this process has, if those of the machine are shared among its processes."""
    return max(1, limits.cores() // local_world())


def restarted() -> bool:
    """Whether torchrun's elastic agent has started this job again after a process died (--max-restarts)."""
    return _restarted if dist.is_initialized() else int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes for the time of the block, if torchrun started some.

    The backend is gloo on the CPU and nccl on GPUs, a GPU each.

    Args:
        device: training.device: "auto", "cpu" or "cuda".

    Raises:
        ConnectionError: another process has ended or can't be reached, see _Heartbeat.
        ConfigError: there are fewer GPUs than processes, or torchrun is not set for restarts on several machines.
    """
    global _long_wait_group, _restarted
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    is_cuda = device != "cpu" and torch.cuda.is_available()
    if is_cuda:
        _set_gpu()
    heartbeat = _connect("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
    if not is_cuda:  # torchrun gives each process one thread
        torch.set_num_threads(cores())
    try:
        _long_wait_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_LONG_WAIT))
        # Only the agent of the process that died counts the restart.
        _restarted = any(all_gather_objects(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))
        yield
    except BaseException as error:
        why = _why_lost(error)
        # No barrier: the others may wait for this process, and learn from its failure that they wait in vain.
        heartbeat.leave(failed=True)
        if not is_cuda and not heartbeat.timed_out:
            # Left as they are, gloo's threads now and then abort the process at its end.
            dist.destroy_process_group()
        if why:
            raise ConnectionError(why) from error
        raise
    heartbeat.leave()
    dist.destroy_process_group()


def _set_gpu() -> None:
    """Take the GPU with the local rank's number. Raises ConfigError if there are too few."""
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if here > gpus:
        raise ConfigError(
            f"{here} processes and {gpus} GPU{'s' if gpus > 1 else ''}; use --nproc-per-node {gpus} or "
            f"--training.device=cpu"
        )
    torch.cuda.set_device(local)


def _connect(backend: str) -> _Heartbeat:
    """Make the default process group. Raises ConfigError, ConnectionError."""
    several_machines = os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]
    shares_store = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1"
    )
    if several_machines and shares_store and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise ConfigError(
            "torchrun with --max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it on each "
            "of them, else those that start again find the addresses of the dead (docs/distributed.md)"
        )
    store, rank_, world_ = next(dist.rendezvous("env://"))
    if not several_machines:  # torchrun's own store outlives a restart, and with it the addresses of the dead
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    try:
        dist.init_process_group(backend, store=store, rank=rank_, world_size=world_)
        return _Heartbeat()
    except RuntimeError as error:
        if "connectFullMesh" not in str(error):
            raise
        raise ConnectionError(
            f"process {rank_} can't reach another one: it has ended, or gloo uses the wrong network (a host's name "
            f"often stands for 127.0.1.1); set GLOO_SOCKET_IFNAME to the interface that leads to the other machines, "
            f"as `ip addr` names it"
        ) from error


def _why_lost(error: BaseException) -> str | None:
    """What to say, if this error of a collective means that another process is gone; else None."""
    if not isinstance(error, RuntimeError):
        return None
    text, is_backend = str(error), isinstance(error, dist.DistBackendError)
    if "Timed out waiting" in text or (is_backend and "timeout" in text.lower()):
        return (
            f"process {rank()} stopped, since another one does not answer: it hangs, or its machine or the network "
            f"between them is down"
        )
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return _ended_message() if is_backend or any(sign in text for sign in signs) else None


def _ended_message() -> str:
    return f"process {rank()} stopped, since another one has ended; the message of that one says why"


class _Heartbeat:
    """A thread in which all processes tell each other that they live, whatever their main threads do or wait for.

    A process that has ended is noticed at once, since its connections are closed; one whose machine or network is down,
    after HEARTBEAT_TIMEOUT. The main thread mostly learns it from its own connections. Where it doesn't within
    EXIT_GRACE_SECONDS (it evaluates, or waits for an answer that a dead network does not bring), the process is ended.

    Attributes:
        timed_out: whether another process did not answer in time.
    """

    _WORKING, _DONE, _FAILED = 0, 1, -1  # of which all processes see the smallest

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=HEARTBEAT_TIMEOUT))
        self._state, self.timed_out = self._WORKING, False
        self._why: str | None = None
        self._leaving, self._left = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def leave(self, failed: bool = False) -> None:
        """End the thread: when all others leave too or, after an error, as soon as they know.

        Raises:
            ConnectionError: another process is lost before.
        """
        self._state = self._FAILED if failed else self._DONE
        self._leaving.set()
        if failed:
            self._left.set()
        self._thread.join()
        if not failed and self._why:
            raise ConnectionError(self._why)

    def _beat(self) -> None:
        lowest = self._WORKING
        while lowest == self._WORKING:
            self._leaving.wait(HEARTBEAT_SECONDS)
            state = torch.tensor([self._state])
            try:
                dist.all_reduce(state, dist.ReduceOp.MIN, group=self._group)
                lowest = int(state.item())
            except RuntimeError as error:
                self._why, self.timed_out = _why_lost(error) or str(error), "Timed out" in str(error)
                break
        if lowest == self._DONE:
            return
        self._why = self._why or _ended_message()
        if self._state == self._WORKING and not self._left.wait(EXIT_GRACE_SECONDS):
            print(f"error: {self._why}", file=sys.stderr, flush=True)
            os._exit(1)


def broadcast_from_main(make: Callable[[], Thing]) -> Thing:
    """What `make()` gives in process 0, in all of them; an exception too."""
    if world() == 1:
        return make()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, group=_long_wait_group)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def all_gather_objects(thing: Thing) -> list[Thing]:
    """A list of every process's `thing`, which is pickled."""
    if world() == 1:
        return [thing]
    things: list[Any] = [None] * world()
    dist.all_gather_object(things, thing, group=_long_wait_group)
    return things


def broadcast_running_stats(module: torch.nn.Module) -> None:
    """Give all processes the first one's means and variances of batch norms, so that all evaluate one network."""
    if world() > 1:
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                dist.broadcast(buffer, 0)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, written into it. Without gradients; see gather.sum_over_processes."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def seed_by_rank(seed: int) -> None:
    """From here on torch's generators differ between the processes (stochastic depth); process 0's stay as they are."""
    if rank():
        torch.manual_seed(seed + (rank() << 32))


class Consensus:
    """Small numbers that all processes must see alike: the largest of each, a step late, without anybody waiting.

    Attributes:
        delay: how many calls an answer comes after its question.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, dist.Work] | None = None
        self.delay = int(world() > 1)

    def all_reduce_max(self, *values: float) -> tuple[float, ...] | list[float]:
        """Ask for the largest of each value; get the answer to the call before (zeros in the first)."""
        if world() == 1:
            return values
        answer = [0.0] * len(values)
        if self._pending is not None:
            numbers, work = self._pending
            work.wait()
            answer = numbers.tolist()
        asked = torch.tensor(values, dtype=torch.float64)
        self._pending = asked, dist.all_reduce(asked, dist.ReduceOp.MAX, async_op=True)
        return answer
