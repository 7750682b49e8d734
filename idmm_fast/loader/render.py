"""The heart of the loader: decode an image once, and write each of its crops, mixed, to its place in the batch."""

from typing import Any

import numpy as np

from ..beton.checksum import checksum
from ..beton.format import RAW
from ..beton.jpeg import ALTERED, CORRUPT, OK, Decoder, decode_jpeg
from ..kernels import atomic
from ..kernels.blur import blur_scratch_size
from ..kernels.jit import kernel
from ..kernels.resize import crop_resize, crop_resize_rounded, scratch_size, taps, weights, write_span
from .augment import apply_augment
from .cache import BUSY, NEW, READY
from .sampling import CROP_SAMPLE, sample_crop


class Scratch:
    """What one thread needs beside input and output; made once, so that no kernel allocates for an image.

    Args:
        max_height: of the images, pixels.
        max_width: of the images, pixels.
        jpeg_pixels: of the largest JPEG; 0: there are none.
        specs: CROP_SPEC (crops,).
    """

    def __init__(self, max_height: int, max_width: int, jpeg_pixels: int, specs: np.ndarray) -> None:
        self.decoder = Decoder()
        size, longest_filter = int(specs["size"].max()), max_taps(specs, max_height, max_width)
        height = max_height if specs["bicubic"].any() else 0
        self.arrays = (  # the last arguments of `render_batch`
            np.empty(3 * jpeg_pixels, np.uint8),
            np.empty((3, size, size), np.float32),
            np.empty(max(scratch_size(size, max_width, height), blur_scratch_size(size)), np.float32),
            np.empty((2, size), np.int64),
            np.empty((2, size, longest_filter), np.float32),
            np.zeros(1, CROP_SAMPLE),
        )


def max_taps(specs: np.ndarray, max_height: int, max_width: int) -> int:
    """The longest filter that any of `specs` (CROP_SPEC) can need on images of at most this size, pixels."""
    longest = max(max_height, max_width)
    return max(
        taps(bool(s["bicubic"]), longest, max(1, min(int(s["size"]), int(s["resize"]) or 1 << 30))) for s in specs
    )


@kernel
def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) after torchvision's Resize: the shorter side is `shorter`, the longer one is rounded down."""
    if height <= width:
        return shorter, shorter * width // height
    return shorter * height // width, shorter


@kernel
def resample_crop(
    source: np.ndarray,
    spec: Any,
    sample: Any,
    planes: np.ndarray,
    scratch: np.ndarray,
    starts: np.ndarray,
    tables: np.ndarray,
) -> None:
    """The crop that was sampled, resized and flipped.

    Args:
        source: uint8 (H, W, 3), the image.
        spec: CROP_SPEC record.
        sample: CROP_SAMPLE record.
        planes: float32 (3, S, S), filled with levels 0..255.
        scratch: float32, as in Scratch.
        starts: int64 (2, S or more), scratch.
        tables: float32 (2, S or more, taps), scratch.
    """
    size = spec.size
    out_h, out_w, top, left = size, size, 0, 0
    if spec.resize > 0:
        out_h, out_w = resized_shape(sample.height, sample.width, spec.resize)
        top, left = int(np.rint((out_h - size) / 2)), int(np.rint((out_w - size) / 2))
    y_starts, x_starts = starts[0, :size], starts[1, :size]
    y_taps = weights(spec.bicubic, sample.height, out_h, top, size, False, y_starts, tables[0])
    x_taps = weights(spec.bicubic, sample.width, out_w, left, size, sample.flip, x_starts, tables[1])
    if spec.bicubic:
        crop_resize_rounded(
            source,
            sample.top,
            sample.left,
            y_starts,
            y_taps,
            tables[0],
            x_starts,
            x_taps,
            tables[1],
            sample.width,
            scratch,
            planes,
        )
    else:
        crop_resize(
            source,
            sample.top,
            sample.left,
            y_starts,
            y_taps,
            tables[0],
            x_starts,
            x_taps,
            tables[1],
            sample.width,
            scratch,
            planes,
        )


@kernel
def render_crop(
    source: np.ndarray,
    spec: Any,
    sample: Any,
    planes: np.ndarray,
    scratch: np.ndarray,
    starts: np.ndarray,
    tables: np.ndarray,
) -> None:
    """One crop of `source`, augmented. For the arguments see `resample_crop`."""
    resample_crop(source, spec, sample, planes, scratch, starts, tables)
    apply_augment(sample, planes, scratch)


@kernel
def write_mixed(planes: np.ndarray, box: np.ndarray, out: np.ndarray, at: int, dest_box: np.ndarray, dest: int) -> None:
    """Round a crop to uint8 pixels (S, S, 3), in its own row outside its box, in another row inside that row's box.

    Args:
        planes: float32 (3, S, S), levels within 0..255.
        box: int64 (4,), of its own row: top, left, bottom, right in pixels, the last two exclusive.
        out: uint8, flat.
        at: index in `out` of its own row.
        dest_box: int64 (4,), of the row that has this crop as partner.
        dest: index in `out` of that row.
    """
    size = planes.shape[1]
    for y in range(size):
        line = 3 * size * y
        if box[0] <= y < box[2]:
            write_span(planes, y, 0, box[1], out, at + line)
            write_span(planes, y, box[3], size, out, at + line)
        else:
            write_span(planes, y, 0, size, out, at + line)
    for y in range(dest_box[0], dest_box[2]):
        write_span(planes, y, dest_box[1], dest_box[3], out, dest + 3 * size * y)


@kernel
def read_image(
    row: int,
    file: np.ndarray,
    mode: np.ndarray,
    height: int,
    width: int,
    ptr: np.ndarray,
    length: np.ndarray,
    sums: np.ndarray,
    slot: np.ndarray,
    state: np.ndarray,
    store: np.ndarray,
    decoder: int,
    pixels: np.ndarray,
) -> tuple[np.ndarray, int]:
    """One image of the beton: decoded, or as it is kept. Its checksum is looked at where the row is not READY.

    Returns:
        (uint8 (height, width, 3), over the file, the store or `pixels`; code of beton.jpeg).
    """
    data, size = file[ptr[row] : ptr[row] + length[row]], height * width * 3
    ready = bool(atomic.load(state, row) == READY)  # type: ignore[call-arg]  # numba gives the first argument
    none = pixels[:0].reshape(0, 0, 3)
    if mode[row] != RAW and store.size > 0 and ready:
        return store[slot[row] : slot[row] + size].reshape(height, width, 3), OK
    if not ready and sums.size and checksum(data) != sums[row]:
        return none, ALTERED
    if mode[row] == RAW:
        if data.size < size:
            return none, CORRUPT
        atomic.store(state, row, np.uint8(READY))
        return data[:size].reshape(height, width, 3), OK
    out = pixels[:size]
    kept = store.size > 0 and atomic.replace(state, row, np.uint8(NEW), np.uint8(BUSY))
    if kept:
        out = store[slot[row] : slot[row] + size]
    code = decode_jpeg(decoder, data, height, width, out)
    if kept:
        atomic.store(state, row, np.uint8(READY if code == OK else NEW))
    return out.reshape(height, width, 3), code


@kernel
def render_batch(
    first: int,
    last: int,
    rows: np.ndarray,
    file: np.ndarray,
    mode: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    ptr: np.ndarray,
    length: np.ndarray,
    sums: np.ndarray,
    slot: np.ndarray,
    state: np.ndarray,
    store: np.ndarray,
    seed: int,
    epoch: int,
    specs: np.ndarray,
    offsets: np.ndarray,
    boxes: np.ndarray,
    dest_rows: np.ndarray,
    out: np.ndarray,
    decoder: int,
    pixels: np.ndarray,
    planes: np.ndarray,
    scratch: np.ndarray,
    starts: np.ndarray,
    tables: np.ndarray,
    sample: np.ndarray,
) -> tuple[int, int]:
    """Make every crop of the images first .. last - 1 of a batch.

    Args:
        first: the first image's place in the batch.
        last: the place after the last image's.
        rows: int64 (B,), the dataset rows of the batch.
        file: uint8, the beton.
        mode: uint8, of every row of the beton.
        height: int64, likewise.
        width: int64, likewise.
        ptr: int64, likewise.
        length: int64, likewise.
        sums: uint64, likewise, or empty: not checked.
        slot: int64, likewise: of ImageCache, as the next two.
        state: uint8, likewise.
        store: uint8, pixels that are kept, or empty: none are.
        seed: uint64.
        epoch: counter.
        specs: CROP_SPEC (crops,).
        offsets: int64 (groups,), where a group begins in `out`.
        boxes: int64 (crops * B, 4), CutMix's, for the rows of all groups one after another.
        dest_rows: int64 (crops * B,), for each of them the row of its group that has it as partner.
        out: uint8, flat: the images of all groups.
        decoder: handle of a Decoder.
        pixels: scratch, like the rest; see Scratch.
        planes: scratch.
        scratch: scratch.
        starts: scratch.
        tables: scratch.
        sample: scratch.

    Returns:
        (place in the batch of the image that failed, or -1; code of beton.jpeg).
    """
    batch = rows.size
    for b in range(first, last):
        row = rows[b]
        h, w = height[row], width[row]
        source, code = read_image(row, file, mode, h, w, ptr, length, sums, slot, state, store, decoder, pixels)
        if code != OK:
            return b, code
        for v in range(specs.size):
            spec = specs[v]
            size, group = spec.size, spec.group
            canvas = planes.reshape(-1)[: 3 * size * size].reshape(3, size, size)
            sample_crop(seed, epoch + spec.ahead, row, spec.stream, h, w, spec, sample[0])
            render_crop(source, spec, sample[0], canvas, scratch, starts, tables)
            own, dest, crop_bytes = spec.slot * batch + b, dest_rows[v * batch + b], 3 * size * size
            group_row = (v - spec.slot) * batch  # the group's first row among those of all groups
            write_mixed(
                canvas,
                boxes[group_row + own],
                out,
                offsets[group] + own * crop_bytes,
                boxes[group_row + dest],
                offsets[group] + dest * crop_bytes,
            )
    return -1, OK
