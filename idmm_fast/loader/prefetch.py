"""FFCV's epoch thread, with what it lacks: errors that reach the consumer, and an end that leaves nothing behind."""

import queue
import sys
import time
import weakref
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from ..errors import LoaderError
from .crops import Group
from .decoder import BatchPosition
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
    """One pass over the rows of an epoch, made ahead of time in a thread of its own.

    Args:
        loader: a MultiCropLoader.
        order: int64 (n,), rows.
        epoch: 0, 1, ...
        first_step: the batch to begin with.

    Attributes:
        yielded: the number of the next batch.
    """

    def __init__(self, loader: Any, order: np.ndarray, epoch: int, first_step: int) -> None:
        Thread.__init__(self, daemon=True, name="idmm-epoch")  # not FFCV's constructor: it allocates every epoch anew
        self.loader, self.order, self.epoch = loader, order, epoch
        self.metadata = loader.beton.metadata
        self.steps = range(first_step, len(loader))
        self.yielded = first_step
        self.output_queue: queue.Queue = queue.Queue(loader.batches_ahead)
        self.terminate_event = Event()
        self.start()

    def _put(self, item: Any) -> bool:
        """Whether `item` could be handed over before the end."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run(self) -> None:
        try:
            for step in self.steps:
                rows, first = self.loader.local_rows(self.order, step)
                item = self.run_pipeline(step, rows, BatchPosition(self.epoch, step, first, self.loader.buffers.take()))
                if not self._put(item):
                    return
                del item
            self._put(None)
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self._put(error)

    def run_pipeline(self, step: int, rows: np.ndarray, position: BatchPosition) -> list[Group]:
        """Run FFCV's stages on one batch."""
        stages, outputs = self.loader.code
        args = {"batch_indices": np.ascontiguousarray(rows, np.int64), "storage_state": None, "metadata": self.metadata}
        args |= {f"memory_{node}": position for node in self.loader.graph.id_to_node}
        args |= {f"shared_memory_{node}": None for node in self.loader.graph.id_to_node}
        for stage, defined in stages:
            args |= {f"result_{node}": result for node, result in zip(defined, stage(**args))}
        (output,) = outputs
        return args[f"result_{output}"]

    def __next__(self) -> list[Group]:
        if self.terminate_event.is_set():
            raise StopIteration
        began = time.perf_counter()
        item = self.output_queue.get()
        self.loader.waited += time.perf_counter() - began
        if item is None:
            self.close()
            raise StopIteration
        if isinstance(item, BaseException):
            self.close()
            if isinstance(item, LoaderError):
                raise item
            raise LoaderError(f"the loader's thread failed: {type(item).__name__}: {item}") from item
        self.yielded += 1
        return item

    def close(self) -> None:
        """Stop the thread and drop what it made; safe to call again."""
        self.terminate_event.set()
        while self.is_alive():
            try:
                self.output_queue.get_nowait()
            except queue.Empty:
                self.join(timeout=0.01)
        while not self.output_queue.empty():
            self.output_queue.get_nowait()


class EpochHandle:
    """What a `for` loop holds: when it is left early, by `break` or an exception, the thread behind it ends.

    A loader has one iteration at a time: a handle that is advanced after another one was begun raises RuntimeError.
    """

    def __init__(self, loader: Any, iterator: Any) -> None:
        self._loader, self._iterator, self._ended = loader, iterator, False
        self._finalizer = weakref.finalize(self, iterator.close)

    def __iter__(self) -> Iterator[list[Group]]:
        return self

    def __next__(self) -> list[Group]:
        if self._ended:
            raise StopIteration
        if self._loader._iterator is not self._iterator:
            raise RuntimeError(
                f"this iteration over {self._loader.fname} was ended by a later iter() or load_state_dict() of the "
                f"same loader, which has one at a time; make a second MultiCropLoader to have two"
            )
        try:
            return next(self._iterator)
        except BaseException:
            self._ended = True
            raise

    def close(self) -> None:
        """End the iteration."""
        self._ended = True
        self._finalizer()
