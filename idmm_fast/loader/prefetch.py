"""FFCV's epoch thread, with what it lacks: errors that reach the consumer, an end that leaves nothing behind."""

import queue
import sys
import time
from threading import Event, Thread

import numpy as np
import torch

from .decoder import BatchPosition, LoaderError
from .ffcv_compat import EpochIterator


class Buffers:
    """Memory for the batches of a loader, kept from epoch to epoch and reused once nobody holds a tensor on it."""

    def __init__(self, size, count):
        self._size, self._count, self._buffers = size, count, []

    def take(self):
        """uint8 (size,), pinned where there is a CUDA device."""
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == 3:  # the list, this loop, the call: no batch has it
                return buffer
        buffer = torch.empty(self._size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()
        if len(self._buffers) < self._count:
            self._buffers.append(buffer)
        return buffer


class SafeEpochIterator(EpochIterator):
    """One pass over `order` (rows) from batch `first_step` on, made ahead of time in a thread of its own."""

    def __init__(self, loader, order, epoch, first_step):
        Thread.__init__(self, daemon=True, name="idmm-epoch")  # not FFCV's constructor: it allocates every epoch anew
        self.loader, self.order, self.epoch = loader, order, epoch
        self.metadata = loader.beton.metadata
        self.steps = range(first_step, len(loader))
        self.yielded = first_step
        self.output_queue = queue.Queue(loader.batches_ahead)
        self.terminate_event = Event()
        self.start()

    def _put(self, item):
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run(self):
        try:
            for step in self.steps:
                rows, first = self.loader.rows_of(self.order, step)
                item = self.run_pipeline(step, rows, BatchPosition(self.epoch, step, first, self.loader.buffers.take()))
                if not self._put(item):
                    return
                del item
            self._put(None)
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self._put(error)

    def run_pipeline(self, step, rows, position):
        """Run FFCV's stages on one batch."""
        stages, outputs = self.loader.code
        args = {"batch_indices": np.ascontiguousarray(rows, np.int64), "storage_state": None, "metadata": self.metadata}
        args |= {f"memory_{node}": position for node in self.loader.graph.id_to_node}
        args |= {f"shared_memory_{node}": None for node in self.loader.graph.id_to_node}
        for stage, defined in stages:
            args |= {f"result_{node}": result for node, result in zip(defined, stage(**args))}
        (output,) = outputs
        return args[f"result_{output}"]

    def __next__(self):
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

    def close(self):
        """Stop the thread and drop what it made; safe to call again."""
        self.terminate_event.set()
        while self.is_alive():
            try:
                self.output_queue.get_nowait()
            except queue.Empty:
                self.join(timeout=0.01)
        while not self.output_queue.empty():
            self.output_queue.get_nowait()
