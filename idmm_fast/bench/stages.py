"""Where the time of the loader goes: each stage of an image in turn, and each kernel alone."""

import time

import numpy as np

from ..beton.jpeg import OK, decode_jpeg
from ..kernels import blur, color
from ..kernels.jit import kernel
from ..loader import IDMM_VIEWS, Augment
from ..loader.augment import recolor_crop
from ..loader.crops import crop_table
from ..loader.render import Scratch, resample_crop, write_mixed
from ..loader.sampling import sample_crop

_BOX = np.array([20, 20, 60, 60])
STAGES = ("read", "decode", "resize", "colour", "blur", "mix")


@kernel
def _run(
    upto, raw, rows, file, ptr, length, height, width, views, out, decoder, pixels, planes, line, starts, tables, draw
):
    """All images up to a stage (its number in STAGES). Returns a number, so that no stage can be left out as unused."""
    seen = 0
    for row in rows:
        data = file[ptr[row] : ptr[row] + length[row]]
        h, w = height[row], width[row]
        if upto == 0:  # every cache line of it
            for k in range(0, data.size, 64):
                seen += data[k]
            continue
        if raw:
            source = data[: h * w * 3].reshape(h, w, 3)
        else:
            if decode_jpeg(decoder, data, h, w, pixels) != OK:
                return -1
            source = pixels[: h * w * 3].reshape(h, w, 3)
        if upto == 1:
            continue
        for v in range(views.size):
            view = views[v]
            canvas = planes.reshape(-1)[: 3 * view.size * view.size].reshape(3, view.size, view.size)
            sample_crop(np.uint64(0), 0, row, v, h, w, view, draw[0])
            resample_crop(source, view, draw[0], canvas, line, starts, tables)
            if upto > 2:
                recolor_crop(draw[0], canvas, line)
            if upto > 3 and draw[0].sigma > 0:
                blur.gaussian_blur(canvas, draw[0].sigma, line)
            if upto > 4:
                write_mixed(canvas, _BOX, out, 0, _BOX, canvas.size)
            seen += out[0]
    return seen


class Stages:
    """The stages of one thread over the images `rows` of a beton."""

    def __init__(self, beton, rows):
        self._rows, self._beton = rows, beton
        self._views = crop_table(IDMM_VIEWS, Augment())
        self._scratch = Scratch(int(beton.height.max()), int(beton.width.max()), self._views, True)
        self._out = np.empty(2 * 3 * IDMM_VIEWS[0].size ** 2, np.uint8)
        self._raw = bool((beton.mode[rows] == 1).all())
        self.upto("read")

    def upto(self, stage):
        """Run all stages up to and with this one, over all images."""
        b = self._beton
        return _run(
            STAGES.index(stage),
            self._raw,
            self._rows,
            b.bytes,
            b.ptr,
            b.length,
            b.height,
            b.width,
            self._views,
            self._out,
            self._scratch.decoder.handle,
            *self._scratch.arrays,
        )

    def microseconds(self, repeats=5):
        """{stage: microseconds an image}, the best of several runs: what a stage adds to those before it."""
        ends = {stage: [] for stage in STAGES}
        for _ in range(repeats):
            for stage in STAGES:
                began = time.perf_counter()
                self.upto(stage)
                ends[stage].append((time.perf_counter() - began) / self._rows.size * 1e6)
        best = {stage: min(ends[stage]) for stage in STAGES}
        result = {"read": best["read"], "decode": 0.0 if self._raw else best["decode"] - best["read"]}
        for before, stage in zip(STAGES[1:], STAGES[2:]):
            result[stage] = best[stage] - best[before]
        return result


def kernels(size=112, repeats=200):
    """{kernel: microseconds a view of `size` pixels}, the best of five rounds; calling from Python costs about 1 of them."""
    planes = np.random.default_rng(0).uniform(0, 255, (3, size, size)).astype(np.float32)
    scratch = np.empty(blur.blur_scratch_size(size), np.float32)
    program, out = np.empty(color.PROGRAM, np.float32), np.empty(6 * size * size, np.uint8)
    calls = {
        "brightness": lambda: color.adjust_brightness(planes, 1.01, program),
        "contrast": lambda: color.adjust_contrast(planes, 1.01, program),
        "saturation": lambda: color.adjust_saturation(planes, 1.01, program),
        "hue": lambda: color.adjust_hue(planes, 0.1, program),
        "grayscale": lambda: color.adjust_saturation(planes, 0.0, program),
        "blur, sigma 0.5": lambda: blur.gaussian_blur(planes, 0.5, scratch),
        "blur, sigma 2": lambda: blur.gaussian_blur(planes, 2.0, scratch),
        "to bytes, mixed": lambda: write_mixed(planes, _BOX, out, 0, _BOX, 3 * size * size),
    }
    result = {}
    for name, call in calls.items():
        call()
        rounds = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            rounds.append((time.perf_counter() - began) / repeats * 1e6)
        result[name] = min(rounds)
    return result
