"""The heart of the loader: decode an image once, write every view of it, mixed, to where it belongs in the batch."""

import numpy as np

from ..beton.checksum import checksum
from ..beton.jpeg import ALTERED, CORRUPT, OK, Decoder, decode_jpeg
from ..kernels.blur import blur_scratch_size, gaussian_blur
from ..kernels.color import PROGRAM, adjust_saturation, jitter
from ..kernels.jit import kernel
from ..kernels.randaugment import apply_operation
from ..kernels.resize import crop_resize, crop_resize_rounded, scratch_size, taps, weights, write_span
from .sampling import DRAW, sample_crop

JPG, RAW = 0, 1  # FFCV's write modes


class Scratch:
    """What one worker thread needs beside its input and output; made once, so that no kernel allocates for an image."""

    def __init__(self, max_height, max_width, views, decode):
        self.decoder = Decoder()
        pixels = max_height * max_width * 3 if decode else 0
        max_size, taps_ = int(views["size"].max()), max_taps(views, max_height, max_width)
        height = max_height if views["bicubic"].any() else 0
        self.arrays = (
            np.empty(pixels, np.uint8),
            np.empty((3, max_size, max_size), np.float32),
            np.empty(max(scratch_size(max_size, max_width, height), blur_scratch_size(max_size)), np.float32),
            np.empty((2, max_size), np.int64),
            np.empty((2, max_size, taps_), np.float32),
            np.zeros(1, DRAW),
        )


def max_taps(views, max_height, max_width):
    """The longest filter that any of `views` (VIEW) can need on images of at most this size."""
    longest = max(max_height, max_width)
    return max(
        taps(bool(v["bicubic"]), longest, max(1, min(int(v["size"]), int(v["resize"]) or 1 << 30))) for v in views
    )


@kernel
def resized_shape(height, width, shorter):
    """torchvision's Resize: the shorter side becomes `shorter`, the longer one is cut to an integer."""
    if height <= width:
        return shorter, shorter * width // height
    return shorter * height // width, shorter


@kernel
def resample_crop(source, view, draw, planes, line, starts, tables):
    """The crop that was drawn, resized: from `source` (uint8, (H, W, 3)) to `planes` (float32, (3, S, S), levels 0..255)."""
    size = view.size
    out_h, out_w, top, left = size, size, 0, 0
    if view.resize > 0:
        out_h, out_w = resized_shape(draw.height, draw.width, view.resize)
        top, left = int(np.rint((out_h - size) / 2)), int(np.rint((out_w - size) / 2))
    down, across = starts[0, :size], starts[1, :size]
    y_taps = weights(view.bicubic, draw.height, out_h, top, size, False, down, tables[0])
    x_taps = weights(view.bicubic, draw.width, out_w, left, size, draw.flip, across, tables[1])
    if view.bicubic:
        crop_resize_rounded(
            source, draw.top, draw.left, down, y_taps, tables[0], across, x_taps, tables[1], draw.width, line, planes
        )
    else:
        crop_resize(
            source, draw.top, draw.left, down, y_taps, tables[0], across, x_taps, tables[1], draw.width, line, planes
        )


@kernel
def recolor_crop(draw, planes, line):
    """The colours that were drawn."""
    program = line[:PROGRAM]
    if draw.jitter:
        jitter(planes, draw.order, draw.brightness, draw.contrast, draw.saturation, draw.hue, draw.gray, program)
    elif draw.gray:
        adjust_saturation(planes, 0.0, program)


@kernel
def render_crop(source, view, draw, planes, line, starts, tables):
    """One view of `source` (uint8, (H, W, 3)) as float32 planes (3, S, S) of levels 0..255, from its specification and draw."""
    resample_crop(source, view, draw, planes, line, starts, tables)
    recolor_crop(draw, planes, line)
    if draw.sigma > 0:
        gaussian_blur(planes, draw.sigma, line)
    for k in range(2):
        if draw.operation[k] >= 0:
            apply_operation(planes, draw.operation[k], draw.argument[k], draw.cut_x[k], draw.cut_y[k], line)


@kernel
def write_mixed(planes, box, out, own, taker_box, taker):
    """Round `planes` (levels within 0..255) to uint8 pixels (H, W, 3): outside `box` at offset `own` of `out`, inside `taker_box` at offset `taker`.

    A box is top, left, bottom, right, the last two exclusive.
    """
    size = planes.shape[1]
    for y in range(size):
        at = 3 * size * y
        if box[0] <= y < box[2]:
            write_span(planes, y, 0, box[1], out, own + at)
            write_span(planes, y, box[3], size, out, own + at)
        else:
            write_span(planes, y, 0, size, out, own + at)
    for y in range(taker_box[0], taker_box[2]):
        write_span(planes, y, taker_box[1], taker_box[3], out, taker + 3 * size * y)


@kernel
def render_batch(
    first,
    last,
    rows,
    file,
    mode,
    height,
    width,
    ptr,
    length,
    sums,
    seed,
    epoch,
    views,
    offsets,
    boxes,
    takers,
    out,
    decoder,
    pixels,
    planes,
    line,
    starts,
    tables,
    draw,
):
    """Make every view of the images first .. last - 1 of the batch `rows`. Returns (failed place in the batch or -1, code).

    rows: int64 (B,), into the per-row tables mode, height, width, ptr, length, and sums where it is not empty. file: the beton, uint8. offsets: int64
    (groups,), where a group starts in `out` (uint8, 1-d). boxes: int64 (views * B, 4), CutMix's, for the rows of all groups
    one after another; takers: int64 (views * B,), for each of them the row of its group that has it as partner.
    The rest is scratch.
    """
    batch = rows.size
    for b in range(first, last):
        row = rows[b]
        h, w = height[row], width[row]
        data = file[ptr[row] : ptr[row] + length[row]]
        if sums.size and checksum(data) != sums[row]:
            return b, ALTERED
        if mode[row] == RAW:
            if data.size < h * w * 3:
                return b, CORRUPT
            source = data[: h * w * 3].reshape(h, w, 3)
        else:
            code = decode_jpeg(decoder, data, h, w, pixels)
            if code != OK:
                return b, code
            source = pixels[: h * w * 3].reshape(h, w, 3)
        for v in range(views.size):
            view = views[v]
            size, group = view.size, view.group
            canvas = planes.reshape(-1)[: 3 * size * size].reshape(3, size, size)
            sample_crop(seed, epoch, row, v, h, w, view, draw[0])
            render_crop(source, view, draw[0], canvas, line, starts, tables)
            own, taker, whole = view.place * batch + b, takers[v * batch + b], 3 * size * size
            first = (v - view.place) * batch  # of the group's rows
            write_mixed(
                canvas,
                boxes[first + own],
                out,
                offsets[group] + own * whole,
                boxes[first + taker],
                offsets[group] + taker * whole,
            )
    return -1, OK
