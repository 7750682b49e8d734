"""Where the loader's time goes: microseconds of each stage of an image, and of each kernel on a crop of 112 pixels.

One thread runs IDMM's six crops of the same images up to one stage after another, five rounds, the best of each
counts; a stage is the difference to the one before it. The kernels run on random pixels, 200 calls a round, the best
of five rounds.
"""

import time

import numpy as np

from ..beton.jpeg import OK, decode_jpeg
from ..beton.read import Beton
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
def _run_images(
    last: int, raw: bool, rows: np.ndarray, table: tuple, specs: np.ndarray, out: np.ndarray, scratch: tuple
) -> int:
    """All images up to the stage `last` (its number in STAGES).

    Args:
        last: Number of a stage.
        raw: Whether the images are stored as pixels.
        rows: int64 (images,).
        table: The bytes of the file, and of each of its images: ptr, length, height, width.
        specs: CROP_SPEC (crops,).
        out: uint8, where crops are written.
        scratch: The decoder's handle and the arrays of Scratch.

    Returns:
        A number, so that no stage can be left out as unused; -1 where an image can't be decoded.
    """
    file, ptr, length, height, width = table
    decoder, pixels, planes, line, starts, tables, sample = scratch
    seen = 0
    for row in rows:
        data = file[ptr[row] : ptr[row] + length[row]]
        h, w = height[row], width[row]
        if last == 0:  # every cache line of it
            for k in range(0, data.size, 64):
                seen += data[k]
            continue
        if raw:
            source = data[: h * w * 3].reshape(h, w, 3)
        else:
            if decode_jpeg(decoder, data, h, w, pixels) != OK:
                return -1
            source = pixels[: h * w * 3].reshape(h, w, 3)
        if last == 1:
            continue
        for c in range(specs.size):
            spec = specs[c]
            canvas = planes.reshape(-1)[: 3 * spec.size * spec.size].reshape(3, spec.size, spec.size)
            sample_crop(np.uint64(0), 0, row, c, h, w, spec, sample[0])
            resample_crop(source, spec, sample[0], canvas, line, starts, tables)
            if last > 2:
                recolor_crop(sample[0], canvas, line)
            if last > 3 and sample[0].sigma > 0:
                blur.gaussian_blur(canvas, sample[0].sigma, line)
            if last > 4:
                write_mixed(canvas, _BOX, out, 0, _BOX, canvas.size)
            seen += out[0]
    return seen


class Stages:
    """The stages of one thread.

    Args:
        beton: Images of one mode.
        rows: Which of them, int64 (images,).
    """

    def __init__(self, beton: Beton, rows: np.ndarray) -> None:
        self._rows = rows
        self._table = (beton.bytes, beton.ptr, beton.length, beton.height, beton.width)
        self._specs = crop_table(IDMM_VIEWS, Augment())
        pixels = int((beton.height * beton.width).max())
        self._scratch = Scratch(int(beton.height.max()), int(beton.width.max()), pixels, self._specs)
        self._out = np.empty(2 * 3 * IDMM_VIEWS[0].size ** 2, np.uint8)
        self._raw = bool((beton.mode[rows] == 1).all())
        self.run_through("read")

    def run_through(self, stage: str) -> None:
        """Run all stages up to and with this one, over all images."""
        scratch = (self._scratch.decoder.handle, *self._scratch.arrays)
        last = STAGES.index(stage)
        _run_images(last, self._raw, self._rows, self._table, self._specs, self._out, scratch)

    def microseconds(self, repeats: int = 5) -> dict[str, float]:
        """{stage: microseconds an image}, the best of several runs: what a stage adds to those before it."""
        ends: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for _ in range(repeats):
            for stage in STAGES:
                began = time.perf_counter()
                self.run_through(stage)
                ends[stage].append((time.perf_counter() - began) / self._rows.size * 1e6)
        best = {stage: min(ends[stage]) for stage in STAGES}
        result = {"read": best["read"], "decode": 0.0 if self._raw else best["decode"] - best["read"]}
        for before, stage in zip(STAGES[1:], STAGES[2:]):
            result[stage] = best[stage] - best[before]
        return result


def kernel_microseconds(size: int = 112, repeats: int = 200) -> dict[str, float]:
    """{kernel: microseconds a crop of `size` pixels}; calling from Python costs about 1 of them."""
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
