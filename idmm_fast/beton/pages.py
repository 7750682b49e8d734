"""The pages of a beton: images' bytes, written one after another; the tables at both ends when all are written."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from .checksum import table_checksum
from .encode import Encoded
from .format import ALLOCATION, HEADER, SAMPLE, SMALLEST_PAGE, SUMS_MARK, VERSION, fields, sums_start


class PageTooSmall(Exception):
    """An image is larger than a page; its argument is the size, bytes."""


class Pages:
    """Writes the data of samples page by page. `helper` sends full pages to the disk while the next ones are made."""

    def __init__(self, file: BinaryIO, rows: int, page_size: int, helper: ThreadPoolExecutor) -> None:
        self.file, self.page_size, self._helper = file, page_size, helper
        self.descriptions = fields()
        self.samples, self.sums, self.allocations = (
            np.zeros(rows, kind) for kind in (SAMPLE, np.dtype(np.uint64), ALLOCATION)
        )
        self.count = 0
        head = HEADER.itemsize + self.descriptions.nbytes + self.samples.nbytes
        self._tables = sums_start(head) + 16 + self.sums.nbytes
        self.position = self._first = _next(self._tables, page_size)
        self._left = page_size  # bytes of the page behind `position`
        self._flushed: Future = helper.submit(int)
        file.seek(self.position)

    def add(self, image: Encoded, label: int) -> None:
        """Append a row. Raises PageTooSmall."""
        size = len(image.data)
        if size > self.page_size:
            raise PageTooSmall(size)
        if size > self._left:  # a sample never crosses the end of a page
            self.position += self._left
            self._left = self.page_size
            if self._flushed.done():
                self._flushed.result()  # a disk tells of an error once
                self.file.flush()
                self._flushed = self._helper.submit(os.fdatasync, self.file.fileno())
            self.file.seek(self.position)
        self.file.write(image.data)
        row = self.count
        self.samples[row]["f0"] = (image.mode, image.width, image.height, self.position)
        self.samples[row]["f1"] = label
        self.allocations[row] = (row, self.position, size)
        self.sums[row] = image.sum
        self.position += size
        self._left -= size
        self.count += 1

    def finish(self) -> int:
        """Write the tables, the header last. Returns the checksum of the tables."""
        self._flushed.result()
        if self.position <= self._first + self.page_size:
            self._shrink_page()
        count, table = self.count, self.position + self._left
        self.file.seek(table)
        self.file.write(self.allocations[:count].tobytes())
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, len(self.descriptions), self.page_size, count, table)
        tables = header.tobytes() + self.descriptions.tobytes() + self.samples[:count].tobytes()
        tables += bytes(sums_start(len(tables)) - len(tables))
        over_all = table_checksum(tables, self.sums[:count], self.allocations[:count])
        self.file.seek(0)
        self.file.write(tables + np.array([SUMS_MARK, over_all], np.uint64).tobytes() + self.sums[:count].tobytes())
        return int(over_all)

    def _shrink_page(self) -> None:
        """Move the data of the only page to the smallest page that holds them: few images make a small file."""
        used = self.position - self._first
        page = max(SMALLEST_PAGE, 1 << (used - 1).bit_length())
        first = _next(self._tables, page)
        back = self._first - first
        if page >= self.page_size or back <= 0:
            return
        self.file.seek(self._first)
        data = self.file.read(used)
        self.file.seek(first)
        self.file.write(data)
        self.file.truncate()
        samples: Any = self.samples
        allocations: Any = self.allocations
        for pointers in (samples["f0"]["data_ptr"], allocations["ptr"]):
            pointers[: self.count] -= np.uint64(back)
        self.page_size, self._first, self.position, self._left = page, first, first + used, page - used


def _next(at: int, step: int) -> int:
    """The first multiple of `step` from `at` on."""
    return -(-at // step) * step
