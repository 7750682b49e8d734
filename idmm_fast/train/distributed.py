"""The processes of a run, as torchrun starts them: RANK, WORLD_SIZE and LOCAL_RANK in the environment. Without it there is one, and
nothing here does anything."""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

from .. import limits


def world():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """Which of them this one is; 0 writes the run folder and talks."""
    return dist.get_rank() if dist.is_initialized() else 0


def talks():
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
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def processes(device):
    """Join the other processes for the time of the block, if torchrun started some; `device` is "auto", "cpu" or "cuda".

    gloo on the CPU, nccl on GPUs, a GPU each. Raises ConnectionError where another process has ended.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank_, world_ = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:  # torchrun's own store outlives a restart, and with it the addresses of the dead
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # several machines may count apart: docs/nodes.md
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank_, world_size=world_)
    if not cuda:  # torchrun gives each process one thread
        torch.set_num_threads(cores())
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            raise ConnectionError(f"process {rank()} stopped, since another one has ended; the message of that one says why") from error
        raise
    dist.barrier()  # after an error there is none: the others may wait for this one, whose end makes torchrun end them
    dist.destroy_process_group()


def from_main(make):
    """What `make()` gives in process 0, in all of them; an exception too."""
    if world() == 1:
        return make()
    answer = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def of_all(thing):
    """A list of every process's `thing`."""
    if world() == 1:
        return [thing]
    things = [None] * world()
    dist.all_gather_object(things, thing)
    return things


def total(tensor):
    """The sum of every process's `tensor`, written into it."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor):
    """The mean of every process's `tensor`, written into it."""
    return total(tensor).div_(world()) if world() > 1 else tensor


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
