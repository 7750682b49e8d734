"""Opening a beton: cheap checks tell an intact file from a truncated, unfinished or foreign one."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BetonError
from .checksum import checksums, table_checksum
from .format import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE,
    IMAGE_FIELD,
    INT_FIELD,
    JPG,
    MAX_PIXELS_PER_BYTE,
    RAW,
    SUMS_MARK,
    VERSION,
    sums_start,
)
from .write import sidecar_path

__all__ = ["Beton", "BetonError", "open_beton", "row_numbers"]

# FFCV's other field types, whose columns are skipped: bytes and JSON (pointer, size), arrays and tensors (pointer).
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
_CUSTOM_FIELD = 255  # FFCV's number of all types but its own; taken for an image field

# Of a file without a sidecar, unless it has more rows: what counts classes counts up to the largest label.
MAX_CLASSES = 1 << 16


@dataclass(frozen=True)
class Beton:
    """An opened beton: where every row's image is, and its label. All arrays have one entry a row.

    Attributes:
        path: the file.
        metadata: FFCV's table, a record a row.
        mode: uint8, format.JPG or format.RAW.
        height: int64, pixels.
        width: int64, pixels.
        ptr: int64, where the image's bytes begin in the file.
        length: int64, how many bytes they are.
        label: int64, a class; -1 where the file has no integer field.
        sums: uint64, checksums of the bytes; of size 0 where the file has none (FFCV's own writer).
        image_column: name of the image's field in `metadata`.
        page_size: bytes.
        table_checksum: over all tables; 0 where the file has none.
    """

    path: Path
    metadata: np.ndarray
    mode: np.ndarray
    height: np.ndarray
    width: np.ndarray
    ptr: np.ndarray
    length: np.ndarray
    label: np.ndarray
    sums: np.ndarray
    image_column: str
    page_size: int
    table_checksum: int

    def __len__(self) -> int:
        return self.mode.size

    @cached_property
    def sidecar(self) -> dict[str, Any]:
        """What write_datasets.py wrote beside the file; {} where there is nothing, or a sidecar of another file."""
        try:
            content = json.loads(sidecar_path(self.path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            content = None
        right = isinstance(content, dict) and isinstance(content.get("classes") or [], list)
        if not right or content.get("tables_sum", self.table_checksum) != self.table_checksum:
            warnings.warn(
                f"{sidecar_path(self.path)} is not of this {self.path.name}; class names are made up", stacklevel=2
            )
            return {}
        return content

    @cached_property
    def classes(self) -> list[str]:
        """Class names: the sidecar's, else made up from the labels."""
        return self.sidecar.get("classes") or [f"class_{c}" for c in range(int(self.label.max()) + 1)]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that depend on every label, size and byte of an image, and not on where these lie in the file.

        A file without checksums (FFCV's own writer) is read to its end for it.
        """
        digest = hashlib.sha256()
        for column, kind in (
            (self.mode, "u1"),
            (self.height, "<i8"),
            (self.width, "<i8"),
            (self.label, "<i8"),
            (self.image_sums, "<u8"),
        ):
            digest.update(np.ascontiguousarray(column, kind))  # type: ignore[arg-type]  # numpy has no stub of Buffer
        return digest.hexdigest()[:16]

    @cached_property
    def image_sums(self) -> np.ndarray:
        """A checksum of each image's bytes, uint64 (images,); a file that has none is read to its end for them."""
        if self.sums.size:
            return self.sums
        sums = np.empty(len(self), np.uint64)
        checksums(self.bytes, self.ptr, self.length, sums)
        return sums

    def count_shared(self, other: "Beton") -> int:
        """How many of these images are in another file too, byte for byte."""
        return int(np.isin(self.image_sums, other.image_sums).sum())

    @cached_property
    def bytes(self) -> np.ndarray:
        """The file as a read-only memory map, uint8 (file size,)."""
        return np.memmap(self.path, np.uint8, mode="r")


def row_numbers(rows: Any, beton: Beton) -> np.ndarray:
    """Check a choice of rows.

    Args:
        rows: integers of shape (n,), in any order, a row may come twice; or a mask of bool, (len(beton),); None: all.
        beton: what the rows are of.

    Returns:
        int64 (n,), in the order given.

    Raises:
        ValueError: `rows` is nothing of this, or empty.
    """
    count = len(beton)
    if rows is None:
        return np.arange(count)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (count,):
            raise ValueError(
                f"rows, as a mask, needs an entry for each of the {count} rows of {beton.path}, not shape {rows.shape}"
            )
        rows = np.flatnonzero(rows)
    if rows.size == 0:
        raise ValueError(f"rows names none of the {count} rows of {beton.path}")
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"rows holds numbers of rows, integers of shape (n,), or is a mask of bool of shape ({count},), "
            f"not {rows.dtype} of shape {rows.shape}"
        )
    if rows.min() < 0 or rows.max() >= count:
        raise ValueError(
            f"rows must be within 0..{count - 1}, the rows of {beton.path}, and holds {rows.min()}..{rows.max()}"
        )
    return rows.astype(np.int64)


def _again(path: Path) -> str:
    return (
        f"Convert it again with idmm-fast convert (a conversion that was interrupted leaves {path.name}.tmp, "
        f"never {path.name})."
    )


def _read_header(path: Path, size: int) -> np.void:
    """The header (HEADER) of a file of `size` bytes."""
    if size < HEADER.itemsize:
        raise BetonError(f"{path} is not a beton: it has {size} bytes. {_again(path)}")
    header = np.fromfile(path, HEADER, count=1)[0]
    if header["version"] != VERSION or not 0 < header["num_fields"] <= 256 or header["page_size"] == 0:
        raise BetonError(f"{path} is not a beton of format version {VERSION} (it says {header['version']}).")
    if header["alloc_table_ptr"] == 0:
        raise BetonError(f"{path} was never finished: its allocation table is missing. {_again(path)}")
    return header


def _read_tables(path: Path, header: np.void, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(field descriptions, samples' table, allocation table, where the samples' table ends in the file)."""
    count, table, columns = int(header["num_samples"]), int(header["alloc_table_ptr"]), int(header["num_fields"])
    start = HEADER.itemsize + columns * FIELD.itemsize
    if not start <= table <= size or (size - table) % ALLOCATION.itemsize:
        raise BetonError(f"{path} is cut short or damaged: its tables do not fit its {size} bytes. {_again(path)}")
    described = np.fromfile(path, FIELD, count=columns, offset=HEADER.itemsize)
    described["type_id"][described["type_id"] == _CUSTOM_FIELD] = IMAGE_FIELD
    kinds = described["type_id"].tolist()
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
    only_images = set(kinds) <= {IMAGE_FIELD, INT_FIELD} and kinds.count(IMAGE_FIELD) == 1
    if only_images and allocations.size != count:  # an image takes one piece of memory, a number none
        raise BetonError(
            f"{path} is damaged: it says it has {count} rows, and holds {allocations.size} images. {_again(path)}"
        )
    return described, metadata, allocations, end


def _read_sums(path: Path, end: int, count: int, limit: int, allocations: np.ndarray) -> tuple[np.ndarray, int]:
    """(checksums of the samples, that of the tables, which is checked); (none, 0) where the file has none."""
    at = sums_start(end)
    if at + 16 + 8 * count > limit:
        return np.empty(0, np.uint64), 0
    mark, over_all = np.fromfile(path, "<u8", count=2, offset=at)
    if mark != SUMS_MARK:
        return np.empty(0, np.uint64), 0
    sums = np.fromfile(path, "<u8", count=count, offset=at + 16)
    with open(path, "rb") as file:
        tables = file.read(at)
    if table_checksum(tables, sums, allocations) != over_all:
        raise BetonError(f"{path} is damaged: its tables are not those that were written. {_again(path)}")
    return sums, int(over_all)


def _lengths(path: Path, data_ptr: np.ndarray, allocations: np.ndarray) -> np.ndarray:
    """int64 (rows,): how many bytes were allocated where each row's data begins."""
    by_ptr = np.argsort(allocations["ptr"], kind="stable")
    pointers = allocations["ptr"][by_ptr]
    found = np.minimum(np.searchsorted(pointers, data_ptr), max(pointers.size - 1, 0))
    if pointers.size == 0 or (pointers[found] != data_ptr).any():
        raise BetonError(f"{path} is damaged: some rows point to data that was never allocated. {_again(path)}")
    return allocations["size"][by_ptr][found].astype(np.int64)


def _check_images(beton: Beton, start: int, size: int) -> None:
    """Refuse rows that describe no image between the bytes `start` and `size` of the file."""
    ptr, length, mode, pixels = beton.ptr, beton.length, beton.mode, beton.height * beton.width
    # ptr and length may be anything in int64: nothing is added to them
    wrong = (
        (ptr < start) | (ptr > size) | (length <= 0) | (length > size - ptr) | (beton.height < 1) | (beton.width < 1)
    )
    wrong |= (mode != JPG) & (mode != RAW)
    wrong |= (mode == RAW) & (length < pixels * 3)
    wrong |= (mode == JPG) & (length < pixels // MAX_PIXELS_PER_BYTE)  # else a few bytes could ask for gigabytes
    if wrong.any():
        raise BetonError(
            f"{beton.path} is damaged: row {int(wrong.argmax())} does not describe an image inside the file. "
            f"{_again(beton.path)}"
        )


def _check_labels(beton: Beton) -> None:
    classes = len(beton.sidecar.get("classes") or ()) or max(len(beton), MAX_CLASSES)
    wrong = (beton.label < -1) | (beton.label >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise BetonError(
            f"{beton.path} is damaged: row {row} has the label {beton.label[row]}; labels are classes, "
            f"0 to {classes - 1}, or -1 for none. {_again(beton.path)}"
        )


def _label_column(path: Path, described: np.ndarray) -> str | None:
    """The column of the labels: that of whole numbers, of several the one called label; None: there is none."""
    integers = np.flatnonzero(described["type_id"] == INT_FIELD).tolist()
    if len(integers) > 1:
        named = [k for k in integers if bytes(described["name"][k]).rstrip(b"\0") == b"label"]
        if not named:
            raise BetonError(
                f"{path} has {len(integers)} fields of whole numbers, and none of them is called label. Write it again "
                f"with that name for the labels."
            )
        integers = named
    return f"f{integers[0]}" if integers else None


def open_beton(path: str | Path) -> Beton:
    """Open and check an FFCV file, of this project or of FFCV's own writer. No image is read.

    Raises:
        BetonError: the file is not an intact beton.
        FileNotFoundError: there is no such file; the message says how to make it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Make it with: idmm-fast convert --ds NAME (see --help).")
    size = path.stat().st_size
    header = _read_header(path, size)
    described, metadata, allocations, end = _read_tables(path, header, size)
    sums, over_all = _read_sums(path, end, len(metadata), int(header["alloc_table_ptr"]), allocations)
    column = f"f{described['type_id'].tolist().index(IMAGE_FIELD)}"
    image, label = metadata[column], _label_column(path, described)
    beton = Beton(
        path=path,
        metadata=metadata,
        mode=np.ascontiguousarray(image["mode"]),
        height=image["height"].astype(np.int64),
        width=image["width"].astype(np.int64),
        ptr=image["data_ptr"].astype(np.int64),
        length=_lengths(path, image["data_ptr"], allocations),
        label=np.full(len(metadata), -1) if label is None else metadata[label].astype(np.int64),
        sums=sums,
        image_column=column,
        page_size=int(header["page_size"]),
        table_checksum=over_all,
    )
    _check_images(beton, HEADER.itemsize + described.nbytes, size)
    _check_labels(beton)
    return beton
