"""FFCV's epoch thread, with what it lacks: errors that reach the consumer, and an end that leaves nothing behind."""

import contextlib
import os
import queue
import sys
import time
import weakref
from collections.abc import Iterator
from threading import Thread, current_thread
from typing import Any

import numpy as np
import torch

from .crops import CutMixSpec, Group
from .decoder import BatchPosition, PendingBatch
from .failed import as_loader_error
from .ffcv_compat import EpochIterator


class Buffers:
    """Memory for the batches of a loader, kept from epoch to epoch and reused once nobody holds a tensor on it.

    Args:
        size: of a buffer, bytes.
        count: how many buffers are kept.
    """

    def __init__(self, size: int, count: int) -> None:
        self._size, self._count = size, count
        self._buffers: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """A free buffer, uint8 (size,), pinned where there is a CUDA device."""
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == 3:  # the list, this loop, the call: no batch has it
                return buffer
        buffer = torch.empty(self._size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()
        if len(self._buffers) < self._count:
            self._buffers.append(buffer)
        return buffer


class SafeEpochIterator(EpochIterator):
    """Makes the batches of an epoch, and then those of the following ones, ahead of time in a thread of its own.

    At most batches_ahead + 1 batches are made, or in the making, and not handed out. The thread does not hold the
    loader, and ends with it.

    Args:
        loader: a MultiCropLoader.
        order: int64 (n,), rows of the first epoch.
        epoch: the first epoch, 0, 1, ...
        first_step: its batch to begin with.

    Attributes:
        yielded: the number of the next batch of the current epoch.
    """

    def __init__(self, loader: Any, order: np.ndarray, epoch: int, first_step: int) -> None:
        Thread.__init__(self, daemon=True, name="idmm-epoch")  # not FFCV's constructor: it allocates every epoch anew
        self.code, self.nodes, self.metadata = loader.code, tuple(loader.graph.id_to_node), loader.beton.metadata
        self.traversal_order, self.cutmix, self.buffers = loader.traversal_order, loader.decoder.cutmix, loader.buffers
        self.epoch, self.epochs, self.yielded = epoch, loader.epochs, first_step
        # Unlike semaphores and events, these bear a finalizer that interrupts a thread in the midst of using them.
        self.output_queue: queue.SimpleQueue = queue.SimpleQueue()
        self._room: queue.SimpleQueue = queue.SimpleQueue()  # an entry for each batch that may be begun
        for _ in range(loader.batches_ahead + 1):
            self._room.put(None)
        self._is_between_epochs, self._is_stopped = False, False
        self._begin, self._process = (order, epoch, first_step), os.getpid()
        self._loader = weakref.ref(loader)
        self._finalizer = weakref.finalize(loader, self._stop)
        self.start()

    def run(self) -> None:
        order, epoch, first_step = self._begin
        try:
            while True:
                for step in range(first_step, len(self.traversal_order)):
                    self._room.get()
                    if self._is_stopped:
                        return
                    rows, first = self.traversal_order.local_rows(order, step)
                    position = BatchPosition(epoch, step, first, self.buffers.take(), self.cutmix)
                    self.output_queue.put(self.run_pipeline(step, rows, position))
                    del position
                self.output_queue.put(None)
                if not self._runs_on(epoch):
                    return
                epoch, first_step = epoch + 1, 0
                order = self.traversal_order.sample_order(epoch)
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self.output_queue.put(error)

    def _runs_on(self, epoch: int) -> bool:
        """Whether batches are made ahead of the epoch after this one."""
        return len(self.traversal_order) > 0 and (self.epochs is None or epoch + 1 < self.epochs)

    def run_pipeline(self, step: int, rows: np.ndarray, position: BatchPosition) -> PendingBatch:
        """Run FFCV's stages on one batch."""
        stages, (output,) = self.code
        args = {"batch_indices": np.ascontiguousarray(rows, np.int64), "storage_state": None, "metadata": self.metadata}
        args |= {f"memory_{node}": position for node in self.nodes}
        args |= {f"shared_memory_{node}": None for node in self.nodes}
        for stage, defined in stages:
            args |= {f"result_{node}": result for node, result in zip(defined, stage(**args))}
        return args[f"result_{output}"]

    def begin_epoch(self, epoch: int, first_step: int, cutmix: CutMixSpec) -> bool:
        """Go on with this epoch, if it is the one whose batches are made ahead, and as they are made; else False."""
        if (
            not self._is_between_epochs
            or self._is_stopped
            or self._process != os.getpid()
            or (epoch, first_step, cutmix) != (self.epoch + 1, 0, self.cutmix)
        ):
            return False
        self.epoch, self.yielded, self._is_between_epochs = epoch, 0, False
        return True

    def __next__(self) -> list[Group]:
        if self._is_stopped:
            raise StopIteration
        if self._process != os.getpid():
            raise RuntimeError("a forked process can't go on with an iteration of its parent; begin a new one")
        began = time.perf_counter()
        item = self.output_queue.get()
        try:
            if item is None:
                self._is_between_epochs = True
                raise StopIteration
            if isinstance(item, BaseException):
                raise as_loader_error(item)
            groups = item.result()
        except StopIteration:
            if not self._runs_on(self.epoch):
                self.close()
            raise
        except BaseException:
            self.close()
            raise
        finally:
            loader = self._loader()
            if loader is not None:
                loader.waited += time.perf_counter() - began
        self._room.put(None)
        self.yielded += 1
        return groups

    def _stop(self) -> None:
        """Tell the thread to end, drop what it made, and wait for nothing: a finalizer may run in any thread."""
        self._is_stopped = True
        if self._process != os.getpid():  # in a forked child there is no thread, and its locks may be taken for ever
            return
        self._room.put(None)
        with contextlib.suppress(queue.Empty):
            while True:
                item = self.output_queue.get_nowait()
                if isinstance(item, PendingBatch):
                    item.cancel()

    def close(self) -> None:
        """Stop the thread and drop what it made; safe to call again."""
        self._finalizer.detach()
        self._stop()
        if self._process == os.getpid() and self is not current_thread():
            self.join()
            self._stop()  # what it made meanwhile
            self.output_queue.put(None)  # for a consumer that waits in another thread

    def __del__(self) -> None:
        """Nothing, where FFCV closes: a running thread holds itself, so this one is over."""


class EpochHandle:
    """What a `for` loop holds: when it is left early, by `break` or an exception, the thread behind it ends.

    After a whole epoch the thread goes on with the next one. A loader has one iteration at a time: a handle that is
    advanced after another one was begun raises RuntimeError.
    """

    def __init__(self, loader: Any, iterator: Any) -> None:
        self._loader, self._iterator, self._ended = loader, iterator, False
        self._number = loader._iterations
        self._finalizer = weakref.finalize(self, iterator.close)

    def __iter__(self) -> Iterator[list[Group]]:
        return self

    def __next__(self) -> list[Group]:
        if self._ended:
            raise StopIteration
        if self._loader._iterations != self._number:
            raise RuntimeError(
                f"this iteration over {self._loader.fname} was ended by a later iter() or load_state_dict() of the "
                f"same loader, which has one at a time; make a second MultiCropLoader to have two"
            )
        try:
            return next(self._iterator)
        except StopIteration:
            self._ended = True
            self._finalizer.detach()
            raise
        except BaseException:
            self._ended = True
            raise

    def close(self) -> None:
        """End the iteration."""
        self._ended = True
        self._finalizer()
