"""Opening a beton: the cheap checks that tell a whole file from a truncated, interrupted or foreign one."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import BetonError
from .checksum import checksums, tables_sum
from .format import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE,
    IMAGE_FIELD,
    INT_FIELD,
    JPG,
    MOST_PIXELS,
    RAW,
    SUMS_MARK,
    VERSION,
    sums_start,
)
from .write import sidecar_path

# FFCV's other field types, whose columns are stepped over: bytes and JSON (pointer, size), arrays and tensors (pointer).
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_COLUMNS = {
    0: np.dtype("<f8"),
    INT_FIELD: np.dtype("<i8"),
    IMAGE_FIELD: IMAGE,
    3: _POINTER_AND_SIZE,
    4: np.dtype("<u8"),
    5: _POINTER_AND_SIZE,
    6: np.dtype("<u8"),
}

MOST_CLASSES = (
    1 << 16
)  # of a file without a sidecar, unless it has more rows; what counts classes counts up to the largest label


@dataclass(frozen=True)
class Beton:
    """An opened beton: where every row's image is, and its label. All arrays have one entry a row."""

    path: Path
    metadata: np.ndarray
    mode: np.ndarray  # uint8: 0 jpg, 1 raw
    height: np.ndarray  # int64, pixels
    width: np.ndarray
    ptr: np.ndarray  # int64, bytes from the start of the file
    length: np.ndarray  # int64, bytes
    label: np.ndarray  # int64; -1 where the file has no integer field
    sums: np.ndarray  # uint64, checksums of the bytes; of size 0 where the file has none (FFCV's own writer)
    image_column: str
    page_size: int  # bytes
    tables_sum: int  # the checksum over all tables; 0 where the file has none

    def __len__(self):
        return self.mode.size

    @cached_property
    def sidecar(self):
        """What `write_datasets.py` wrote beside the file, or {} where there is nothing, or what belongs to another file."""
        try:
            content = json.loads(sidecar_path(self.path).read_text())
        except (OSError, ValueError):
            return {}
        right = isinstance(content, dict) and isinstance(content.get("classes") or [], list)
        if not right or content.get("tables_sum", self.tables_sum) != self.tables_sum:
            warnings.warn(
                f"{sidecar_path(self.path)} is not of this {self.path.name}; class names are made up", stacklevel=2
            )
            return {}
        return content

    @cached_property
    def classes(self):
        """Class names, from the sidecar, else made up from the labels."""
        return self.sidecar.get("classes") or [f"class_{c}" for c in range(int(self.label.max()) + 1)]

    @cached_property
    def fingerprint(self):
        """16 hex digits that change with any label, size or byte of an image, and not with where these lie in the file.

        A file without checksums (FFCV's own writer) is read whole for it.
        """
        sums = self.sums
        if not sums.size:
            sums = np.empty(len(self), np.uint64)
            checksums(self.bytes, self.ptr, self.length, sums)
        digest = hashlib.sha256()
        for column, kind in (
            (self.mode, "u1"),
            (self.height, "<i8"),
            (self.width, "<i8"),
            (self.label, "<i8"),
            (sums, "<u8"),
        ):
            digest.update(np.ascontiguousarray(column, kind))
        return digest.hexdigest()[:16]

    @cached_property
    def bytes(self):
        """The file as a read-only memory map, uint8 (file size,)."""
        return np.memmap(self.path, np.uint8, mode="r")


def _again(path):
    return f"Convert it again with write_datasets.py (a conversion that was interrupted leaves {path.name}.tmp, never {path.name})."


def _read_sums(path, end, count, limit, allocations):
    """The samples' checksums and that over the tables, after checking them against it; none (size 0) where the file has no mark of them."""
    at = sums_start(end)
    if at + 16 + 8 * count > limit:
        return np.empty(0, np.uint64), 0
    mark, over_all = np.fromfile(path, "<u8", count=2, offset=at)
    if mark != SUMS_MARK:
        return np.empty(0, np.uint64), 0
    sums = np.fromfile(path, "<u8", count=count, offset=at + 16)
    with open(path, "rb") as file:
        tables = file.read(at)
    if tables_sum(tables, sums, allocations) != over_all:
        raise BetonError(f"{path} is damaged: its tables are not those that were written. {_again(path)}")
    return sums, int(over_all)


def open_beton(path):
    """Open and check the FFCV file `path`. Returns Beton; raises BetonError, or FileNotFoundError with what to do."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Make it with: python write_datasets.py --ds NAME (see --help)."
        )
    size = path.stat().st_size
    if size < HEADER.itemsize:
        raise BetonError(f"{path} is not a beton: it has {size} bytes. {_again(path)}")
    header = np.fromfile(path, HEADER, count=1)[0]
    count, table, columns = int(header["num_samples"]), int(header["alloc_table_ptr"]), int(header["num_fields"])
    if header["version"] != VERSION or not 0 < columns <= 256 or header["page_size"] == 0:
        raise BetonError(f"{path} is not a beton of format version {VERSION} (it says {header['version']}).")
    if table == 0:
        raise BetonError(f"{path} was never finished: its allocation table is missing. {_again(path)}")
    start = HEADER.itemsize + columns * FIELD.itemsize
    if not start <= table <= size or (size - table) % ALLOCATION.itemsize:
        raise BetonError(f"{path} is cut short or damaged: its tables do not fit its {size} bytes. {_again(path)}")
    described = np.fromfile(path, FIELD, count=columns, offset=HEADER.itemsize)
    kinds = [IMAGE_FIELD if t == 255 else int(t) for t in described["type_id"]]
    if IMAGE_FIELD not in kinds or any(k not in _COLUMNS for k in kinds):
        raise BetonError(f"{path} has no image field that can be read (field types {kinds}).")
    sample = np.dtype([("", _COLUMNS[k]) for k in kinds], align=True)
    end = start + count * sample.itemsize
    if count == 0 or end > table:
        raise BetonError(f"{path} is cut short or damaged: {count} rows do not fit its {size} bytes. {_again(path)}")
    if (size - table) // ALLOCATION.itemsize > count * columns:  # a field takes at most one piece of memory a row
        raise BetonError(f"{path} is damaged: its allocation table is too long for {count} rows. {_again(path)}")
    metadata = np.fromfile(path, sample, count=count, offset=start)
    allocations = np.fromfile(path, ALLOCATION, offset=table)
    sums, tables = _read_sums(path, end, count, table, allocations)
    column = f"f{kinds.index(IMAGE_FIELD)}"
    image = metadata[column]
    by_ptr = np.argsort(allocations["ptr"], kind="stable")
    pointers = allocations["ptr"][by_ptr]
    found = np.minimum(np.searchsorted(pointers, image["data_ptr"]), max(pointers.size - 1, 0))
    if pointers.size == 0 or (pointers[found] != image["data_ptr"]).any():
        raise BetonError(f"{path} is damaged: some rows point to data that was never allocated. {_again(path)}")
    length = allocations["size"][by_ptr][found].astype(np.int64)
    ptr, height, width = (image[c].astype(np.int64) for c in ("data_ptr", "height", "width"))
    mode = np.ascontiguousarray(image["mode"])
    # ptr and length may be anything in int64: nothing is added to them
    wrong = (ptr < start) | (ptr > size) | (length <= 0) | (length > size - ptr) | (height < 1) | (width < 1)
    wrong |= (mode != JPG) & (mode != RAW)
    wrong |= (mode == RAW) & (length < height * width * 3)
    wrong |= (mode == JPG) & (length < height * width // MOST_PIXELS)  # else a few bytes could ask for gigabytes
    if wrong.any():
        raise BetonError(
            f"{path} is damaged: row {int(wrong.argmax())} does not describe an image inside the file. {_again(path)}"
        )
    label = metadata[f"f{kinds.index(INT_FIELD)}"].astype(np.int64) if INT_FIELD in kinds else np.full(count, -1)
    beton = Beton(
        path, metadata, mode, height, width, ptr, length, label, sums, column, int(header["page_size"]), tables
    )
    classes = len(beton.sidecar.get("classes") or ()) or max(count, MOST_CLASSES)
    wrong = (label < -1) | (label >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise BetonError(
            f"{path} is damaged: row {row} has the label {label[row]}; labels are classes, 0 to {classes - 1}, or -1 for none. {_again(path)}"
        )
    return beton
