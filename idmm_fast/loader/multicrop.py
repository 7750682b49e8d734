"""The heart of the loader: decode an image once, write every view of it, mixed, to where it belongs in the batch."""

import numpy as np

from ..beton.jpeg import CORRUPT, OK, Decoder, decode_jpeg
from ..jit import kernel, to_level
from .blur import blur_scratch_size, gaussian_blur
from .color import jitter, to_gray
from .draws import DRAW, draw_view
from .randaugment import apply_operation
from .resize import crop_resize, scratch_size, taps, weights

JPG, RAW = 0, 1  # FFCV's write modes


class Scratch:
    """What one worker thread needs beside its input and output; made once, so that no kernel allocates for an image."""

    def __init__(self, max_height, max_width, max_size, max_taps, decode):
        self.decoder = Decoder()
        pixels = max_height * max_width * 3 if decode else 0
        self.arrays = (
            np.empty(pixels, np.uint8),
            np.empty((3, max_size, max_size), np.float32),
            np.empty(max(scratch_size(max_size, max_width), blur_scratch_size(max_size)), np.float32),
            np.empty((2, max_size), np.int32),
            np.empty((2, max_size, max_taps), np.float32),
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
def render_view(source, view, draw, planes, line, starts, tables):
    """One view of `source` (uint8, (H, W, 3)) as float32 planes (3, S, S) of levels 0..255, from its specification and draw."""
    size = view.size
    out_h, out_w, top, left = size, size, 0, 0
    if view.resize > 0:
        out_h, out_w = resized_shape(draw.height, draw.width, view.resize)
        top, left = int(np.rint((out_h - size) / 2)), int(np.rint((out_w - size) / 2))
    weights(view.bicubic, draw.height, out_h, top, size, False, starts[0], tables[0])
    weights(view.bicubic, draw.width, out_w, left, size, draw.flip, starts[1], tables[1])
    y_taps, x_taps = taps(view.bicubic, draw.height, out_h), taps(view.bicubic, draw.width, out_w)
    crop_resize(
        source,
        draw.top,
        draw.left,
        starts[0],
        tables[0],
        y_taps,
        starts[1],
        tables[1],
        x_taps,
        draw.width,
        line,
        planes,
    )
    if draw.jitter:
        jitter(planes, draw.order, draw.brightness, draw.contrast, draw.saturation, draw.hue)
    if draw.gray:
        to_gray(planes)
    if draw.sigma > 0:
        gaussian_blur(planes, draw.sigma, line)
    for k in range(2):
        if draw.operation[k] >= 0:
            apply_operation(planes, draw.operation[k], draw.argument[k], line)


@kernel
def _write_span(planes, y, x0, x1, out, at):
    red, green, blue = planes[0, y], planes[1, y], planes[2, y]
    span = out[at + 3 * x0 : at + 3 * x1]
    for x in range(x1 - x0):
        span[3 * x] = to_level(red[x0 + x])
        span[3 * x + 1] = to_level(green[x0 + x])
        span[3 * x + 2] = to_level(blue[x0 + x])


@kernel
def write_mixed(planes, box, out, own, other):
    """Round `planes` to uint8 pixels (H, W, 3): outside `box` at offset `own` of `out`, inside it at offset `other`."""
    size = planes.shape[1]
    top, left, bottom, right = box
    for y in range(size):
        at = own + 3 * size * y
        if top <= y < bottom:
            _write_span(planes, y, 0, left, out, at)
            _write_span(planes, y, left, right, out, other + 3 * size * y)
            _write_span(planes, y, right, size, out, at)
        else:
            _write_span(planes, y, 0, size, out, at)


@kernel
def make_views(first, last, rows, file, mode, height, width, ptr, length, seed, epoch, views, offsets, boxes, takers, out,
               decoder, pixels, planes, line, starts, tables, draw):  # fmt: skip
    """Make every view of the images first .. last - 1 of the batch `rows`. Returns (failed place in the batch or -1, code).

    rows: int64 (B,), into the per-row tables mode, height, width, ptr, length. file: the beton, uint8. offsets: int64
    (groups,), where a group starts in `out` (uint8, 1-d). boxes: int64 (groups, 4). takers: int64 (views * B,): for row r
    of the views, counted through all groups, the row of the same group that has r as its CutMix partner.
    The rest is scratch.
    """
    batch = rows.size
    for b in range(first, last):
        row = rows[b]
        h, w = height[row], width[row]
        data = file[ptr[row] : ptr[row] + length[row]]
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
            draw_view(seed, epoch, row, v, h, w, view, draw[0])
            render_view(source, view, draw[0], canvas, line, starts, tables)
            own = view.place * batch + b
            box = boxes[group]
            write_mixed(
                canvas, (box[0], box[1], box[2], box[3]), out,
                offsets[group] + own * size * size * 3, offsets[group] + takers[v * batch + b] * size * size * 3,
            )  # fmt: skip
    return -1, OK
