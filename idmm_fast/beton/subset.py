"""Some rows of a beton as a beton of their own."""

import numpy as np

from ..datasets.split import Split
from .checksum import checksum
from .format import RAW
from .read import BetonError, open_beton
from .write import write_beton


def sample_rows(labels, images, balanced, seed):
    """`images` row numbers, sorted, drawn by `seed`. balanced: as many of each class as there can be, those left over at random. labels: int64 (n,).

    Raises ValueError where there are fewer rows.
    """
    if not 0 < images <= labels.size:
        raise ValueError(f"{images} images were asked for, and there are {labels.size}")
    order = np.random.default_rng(seed).permutation(labels.size)
    if balanced:  # first one of each class, then a second one of each, ...
        turn = np.empty(labels.size, np.int64)
        for c in np.unique(labels):
            mine = np.flatnonzero(labels[order] == c)
            turn[mine] = np.arange(mine.size)
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:images])


def write_subset(path, rows, out):
    """Write the rows `rows` of the beton `path` to `out`, bytes and labels as they are; where some of them are JPEGs and some pixels, all become pixels.

    Returns write.Written. Raises BetonError where the bytes of a row are not those that were written, WriteError.
    """
    beton = open_beton(path)

    def image(row):
        data = beton.bytes[beton.ptr[row] : beton.ptr[row] + beton.length[row]]
        if beton.sums.size and checksum(data) != beton.sums[row]:
            raise BetonError(
                f"row {row} of {path} was altered after it was written; see write_datasets.py --verify. Convert it again."
            )
        if beton.mode[row] != RAW:
            return data.tobytes()
        height, width = beton.height[row], beton.width[row]
        return data[: height * width * 3].reshape(height, width, 3)

    split = Split([image(row) for row in rows], [int(beton.label[row]) for row in rows], beton.classes)
    mode = "raw" if (beton.mode[rows] == RAW).any() else "jpg"
    return write_beton(
        out,
        split,
        dataset=beton.sidecar.get("dataset", ""),
        name=f"{len(rows)} rows of {path}",
        mode=mode,
        on_error="fail",
        quiet=True,
    )
