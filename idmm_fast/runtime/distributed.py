"""The processes of a run, as torchrun starts them: RANK, WORLD_SIZE and LOCAL_RANK in the environment. Without it there is one, and
nothing here does anything."""

import os
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from .. import limits
from ..config import ConfigError

BEAT = 2.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one until a process counts as lost
GRACE = 20.0  # seconds that the main thread has to end by itself when another process is lost
PATIENCE = timedelta(days=30)  # for waits that a long evaluation makes long; whether the others live is watched apart

_patient = None  # the process group (gloo) of these waits
_restarted = False  # what restarted() says among several


def world():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """Which of them this one is; 0 writes the run folder and talks."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process():
    """Whether this process is the one that prints; also before and after `processes`."""
    return int(os.environ.get("RANK", 0)) == 0


def local_world():
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def cores():
    """How many cores this process has, if those of the machine are shared among its processes."""
    return max(1, limits.cores() // local_world())


def restarted():
    """Whether torchrun's elastic agent has started this job again after a process died (--max-restarts)."""
    return _restarted if dist.is_initialized() else int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def processes(device):
    """Join the other processes for the time of the block, if torchrun started some; `device` is "auto", "cpu" or "cuda".

    gloo on the CPU, nccl on GPUs, a GPU each. Raises ConnectionError where another process has ended or can't be reached, see _Watch;
    ConfigError where there are fewer GPUs than processes, or torchrun was not set for restarts on several machines.
    """
    global _patient, _restarted
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
        if here > gpus:
            raise ConfigError(
                f"{here} processes and {gpus} GPU{'s' if gpus > 1 else ''}; use --nproc-per-node {gpus} or --training.device=cpu"
            )
        torch.cuda.set_device(local)
    several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]
    shared = (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1"
    )
    if several and shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise ConfigError(
            "torchrun with --max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it on each of them, "
            "else those that start again find the addresses of the dead (docs/distributed.md)"
        )
    store, rank_, world_ = next(dist.rendezvous("env://"))
    if not several:  # torchrun's own store outlives a restart, and with it the addresses of the dead
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank_, world_size=world_)
        watch = _Watch()
    except RuntimeError as error:
        if "connectFullMesh" not in str(error):
            raise
        raise ConnectionError(
            f"process {rank_} can't reach another one: it has ended, or gloo uses the wrong network (a host's name often stands for 127.0.1.1); "
            f"set GLOO_SOCKET_IFNAME to the interface that leads to the other machines, as `ip addr` names it"
        ) from error
    if not cuda:  # torchrun gives each process one thread
        torch.set_num_threads(cores())
    try:
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        _restarted = any(
            all_gather_objects(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
        )  # only the agent of the dead process counts it
        yield
    except BaseException as error:
        why = _lost(error)
        watch.leave(
            failed=True
        )  # no barrier: the others may wait for this one, and learn from this that they wait in vain
        if not cuda and not watch.silent:  # left as they are, gloo's threads now and then abort the process at its end
            dist.destroy_process_group()
        if why:
            raise ConnectionError(why) from error
        raise
    watch.leave()
    dist.destroy_process_group()


def _lost(error):
    """What to say, if this error of a collective means that another process is gone; else None."""
    if not isinstance(error, RuntimeError):
        return None
    text, backend = str(error), isinstance(error, dist.DistBackendError)
    if "Timed out waiting" in text or (backend and "timeout" in text.lower()):
        return f"process {rank()} stopped, since another one does not answer: it hangs, or its machine or the network between them is down"
    if backend or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    ):
        return f"process {rank()} stopped, since another one has ended; the message of that one says why"
    return None


class _Watch:
    """A thread in which all processes show each other every BEAT seconds that they live, whatever their main threads wait for or do.

    One that has ended is noticed at once, since its connections are closed, and one whose machine or network is down after SILENCE
    seconds. The main thread mostly learns it from its own connections. Where it doesn't within GRACE seconds (it evaluates, or waits for
    an answer that a dead network does not bring), the process is ended.
    """

    def __init__(self):
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=SILENCE))
        self._mine, self._why, self.silent = 0, None, False  # 0: at work, 1: done, -1: failed
        self._leaving, self._left = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)
        self._thread.start()

    def leave(self, failed=False):
        """End the thread: when all others leave too, or, after an error, as soon as they know. Raises ConnectionError if one is lost before."""
        self._mine = -1 if failed else 1
        self._leaving.set()
        if failed:
            self._left.set()
        self._thread.join()
        if not failed and self._why:
            raise ConnectionError(self._why)

    def _beat(self):
        lowest = 0
        while lowest == 0:
            self._leaving.wait(BEAT)
            sign = torch.tensor([self._mine])
            try:
                dist.all_reduce(sign, dist.ReduceOp.MIN, group=self._group)
                lowest = sign.item()
            except RuntimeError as error:
                self._why, self.silent = _lost(error) or str(error), "Timed out" in str(error)
                break
        if lowest > 0:
            return
        self._why = (
            self._why or f"process {rank()} stopped, since another one has ended; the message of that one says why"
        )
        if self._mine == 0 and not self._left.wait(GRACE):
            print(f"error: {self._why}", file=sys.stderr, flush=True)
            os._exit(1)


def broadcast_from_main(make):
    """What `make()` gives in process 0, in all of them; an exception too."""
    if world() == 1:
        return make()
    answer = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, group=_patient)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def all_gather_objects(thing):
    """A list of every process's `thing`."""
    if world() == 1:
        return [thing]
    things = [None] * world()
    dist.all_gather_object(things, thing, group=_patient)
    return things


def total(tensor):
    """The sum of every process's `tensor`, written into it."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def seed_apart(seed):
    """From here on torch's generators give every process something else (drop path); the first one goes on as it was."""
    if rank():
        torch.manual_seed(seed + (rank() << 32))


class Agreement:
    """Small numbers that all processes must see alike, a step late, without anybody waiting: the largest of each."""

    def __init__(self):
        self._asked = None
        self.delay = int(world() > 1)  # how many calls an answer comes after its question

    def ask(self, *values):
        """Begin to compare these; and return the largest that were asked for in the call before (zeros in the first)."""
        if world() == 1:
            return values
        before, self._asked = self._asked, torch.tensor(values, dtype=torch.float64)
        answer = [0.0] * len(values)
        if before is not None:
            numbers, work = before
            work.wait()
            answer = numbers.tolist()
        self._asked = self._asked, dist.all_reduce(self._asked, dist.ReduceOp.MAX, async_op=True)
        return answer
