"""FFCV's file format, version 2: header, field descriptions, samples' table, pages of data, allocation table.

Restated here because FFCV documents it nowhere and importing it costs seconds (source: ffcv/types.py and ffcv/writer.py
of FFCV 1.0.2). Everything is little-endian; a sample's data never crosses the end of a page.

FFCV leaves a gap between the samples' table and the first page. Our files have checksums there, which FFCV does not
read: a mark, one checksum over all tables, and one over each sample's bytes.
"""

import numpy as np

VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)

SUMS_MARK = np.uint64(0x534D5553_4D4D4449)  # the bytes IDMMSUMS

INT_FIELD, IMAGE_FIELD = 1, 2
JPG, RAW = 0, 1
MODES = ("jpg", "raw")
# Of a JPEG: each block of 64 pixels takes a bit at least. A file that claims more is not given the memory.
MAX_PIXELS_PER_BYTE = 8 * 64
MIN_PAGE = 1 << 21  # of FFCV's own writer
SMALLEST_PAGE = 1 << 12  # of a file whose data fit one page
DEFAULT_PAGE = 1 << 23
MAX_PAGE = 1 << 31


def sums_start(end_of_table: int) -> int:
    """Where the checksums begin: after the samples' table, at a multiple of eight bytes."""
    return -(-end_of_table // 8) * 8


def fields(names: tuple[str, str] = ("image", "label")) -> np.ndarray:
    """The field descriptions (FIELD) of an image and an integer label, as FFCV's own writer makes them."""
    result = np.zeros(2, FIELD)
    for record, type_id, name in zip(result, (IMAGE_FIELD, INT_FIELD), names):
        record["type_id"] = type_id
        encoded = np.frombuffer(name.encode("ascii")[:16], "<u1")
        record["name"][: encoded.size] = encoded
    return result
