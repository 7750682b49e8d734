"""CutMix for a multi-crop group: boxes and partners, sampled before the pixels are made; and mixup.

Because they are sampled first, the pipeline writes each crop's pixels straight to where they end up (outside the box
into the crop's own row, inside it into the row that has this crop as partner), and mixing costs nothing.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from ..kernels.jit import kernel
from ..kernels.philox import CUTMIX_STREAM, MIXUP_STREAM, permutation, uniforms
from .crops import CutMixSpec, Views


@dataclass(frozen=True)
class CutMix:
    """How the n rows of a group are mixed: row i keeps its pixels outside its box and takes partner[i]'s inside it.

    Attributes:
        lam: float64 (n,), the fraction of a row's own pixels, exactly 1 - box area / image area.
        box: int64 (n, 4), top, left, bottom, right in pixels, the last two exclusive.
        partner: int64 (n,), a permutation.
    """

    lam: np.ndarray
    box: np.ndarray
    partner: np.ndarray


@kernel
def _fill_boxes(lams, us, size, boxes):
    for k in range(lams.size):
        half = int(size * np.sqrt(1.0 - lams[k])) // 2
        y, x = int(us[k, 1] * size), int(us[k, 2] * size)
        boxes[k, 0], boxes[k, 1] = max(y - half, 0), max(x - half, 0)
        boxes[k, 2], boxes[k, 3] = min(y + half, size), min(x + half, size)


@kernel
def _fill_uniforms(seed, step, epoch, stream, result):
    for k in range(result.shape[0]):
        result[k, 0], result[k, 1], result[k, 2], result[k, 3] = uniforms(seed, step, epoch, stream, k)


def sample_cutmix(
    counter: tuple[int, int, int, int], batch: int, views: Views, spec: CutMixSpec, first: int = 0
) -> CutMix:
    """Sample the CutMix of a group (Yun et al., arXiv 1905.04899), as IDMM's authors do.

    lam ~ Beta(alpha, alpha), folded to max(lam, 1 - lam); the box's side is int(size * sqrt(1 - lam)), its centre
    uniform over the pixels, clipped at the edges; lam is then what the clipped box leaves. One box holds for a whole
    group, and the permutation runs over all its rows, so a row may meet another crop of its own image, or itself.

    With a chunk, so many neighbouring images mix among themselves, with a box of their own, and the samples are the
    same however the global batch is split.

    Args:
        counter: (seed, uint64; epoch; step; number of the group).
        batch: images of the batch.
        views: the group.
        spec: how crops are mixed.
        first: place of the batch's first image in the global batch, a multiple of `spec.chunk`. Without a chunk each
            process has a box of its own, by this place.
    """
    seed, epoch, step, group = counter
    count, size, alpha, chunk = views.count, views.size, spec.alpha_of(epoch), spec.chunk
    rows = batch * count
    if alpha == 0:
        return CutMix(np.ones(rows), np.zeros((rows, 4), np.int64), np.arange(rows))
    lam, box, partner = np.empty(rows), np.empty((rows, 4), np.int64), np.empty(rows, np.int64)
    numbers = np.arange(rows).reshape(count, batch)  # rows are crop-major
    length = chunk or batch
    for start in range(0, batch, length):
        mine = numbers[:, start : start + length].reshape(-1)
        stream = CUTMIX_STREAM + 2 * group + (1 << 12) * ((first + start) // chunk if chunk else first)
        us = np.empty((mine.size if spec.per_row else 1, 4))
        _fill_uniforms(seed, step, epoch, stream, us)
        lams = betaincinv(alpha, alpha, us[:, 0])
        boxes = np.empty((us.shape[0], 4), np.int64)
        _fill_boxes(np.maximum(lams, 1.0 - lams), us, size, boxes)
        box[mine] = boxes
        partner[mine] = mine[permutation(seed, step, epoch, stream + 1, mine.size)]
    lam[:] = 1.0 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (size * size)
    return CutMix(lam, box, partner)


def sample_mixup(seed: int, epoch: int, step: int, n: int, alpha: float) -> tuple[float, np.ndarray]:
    """Sample the mixup of a batch (Zhang et al., arXiv 1710.09412).

    Args:
        seed: 0..2**64 - 1.
        epoch: counter.
        step: counter.
        n: rows of the batch.
        alpha: of the Beta distribution of lam, above 0.

    Returns:
        (lam, folded to its larger half; int64 (n,), each row's partner).
    """
    lam = betaincinv(alpha, alpha, uniforms(np.uint64(seed), step, epoch, MIXUP_STREAM, 0)[0])
    return max(lam, 1 - lam), permutation(np.uint64(seed), step, epoch, MIXUP_STREAM + 1, n)


@kernel
def _copy_bytes(source: np.ndarray, at: int, out: np.ndarray, to: int, size: int) -> None:
    for k in range(size):
        out[to + k] = source[at + k]


@kernel
def mix_stored(
    first: int,
    last: int,
    images: np.ndarray,
    passed: int,
    stored: np.ndarray,
    places: np.ndarray,
    block: int,
    counts: np.ndarray,
    specs: np.ndarray,
    offsets: np.ndarray,
    boxes: np.ndarray,
    dest_rows: np.ndarray,
    out: np.ndarray,
) -> None:
    """Copy the crops of the images first .. last - 1 of a batch from those of a block, mixed; see `render.write_mixed`.

    Args:
        first: the first image's place in the batch.
        last: the place after the last image's.
        images: int64 (B,), the place of each image in the block.
        passed: passes before this one.
        stored: uint8, flat: the crops of the block.
        places: int64 (groups,), where a group begins in `stored`.
        block: images of the block.
        counts: int64 (groups,), crops of an image and pass.
        specs: CROP_SPEC (crops,), this and what follows as in `render.render_batch`.
        offsets: int64 (groups,).
        boxes: int64 (crops * B, 4).
        dest_rows: int64 (crops * B,).
        out: uint8, flat.
    """
    batch = images.size
    for b in range(first, last):
        for v in range(specs.size):
            size, group, slot = specs[v].size, specs[v].group, specs[v].slot
            crop_bytes, group_row = 3 * size * size, (v - slot) * batch
            source = places[group] + ((passed * counts[group] + slot) * block + images[b]) * crop_bytes
            own, dest = slot * batch + b, dest_rows[v * batch + b]
            at, to = offsets[group] + own * crop_bytes, offsets[group] + dest * crop_bytes
            box, dest_box = boxes[group_row + own], boxes[group_row + dest]
            top, bottom = 3 * size * box[0], 3 * size * max(box[0], box[2])
            _copy_bytes(stored, source, out, at, top)
            _copy_bytes(stored, source + bottom, out, at + bottom, crop_bytes - bottom)
            for y in range(box[0], box[2]):
                line, left, right = 3 * size * y, 3 * box[1], 3 * box[3]
                _copy_bytes(stored, source + line, out, at + line, left)
                _copy_bytes(stored, source + line + right, out, at + line + right, 3 * size - right)
            for y in range(dest_box[0], dest_box[2]):
                line = 3 * (size * y + dest_box[1])
                _copy_bytes(stored, source + line, out, to + line, 3 * (dest_box[3] - dest_box[1]))
