"""CutMix for a group of views: boxes and partners, drawn before the pixels are made.

Because the draw comes first, the pipeline writes each view's pixels straight to where they end up (outside the box into
the view's own row, inside it into the row of whoever has this view as partner), and mixing costs nothing.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from ..kernels.jit import kernel
from ..kernels.philox import CUTMIX_STREAM, MIXUP_STREAM, permutation, uniforms


@dataclass(frozen=True)
class CutMix:
    """How the n rows of a group are mixed: row i keeps its pixels outside its box and takes partner[i]'s inside it.

    lam: float64 (n,), share of a row's own pixels, exactly 1 - box area / image area. box: int64 (n, 4), top, left,
    bottom, right in pixels, the last two exclusive. partner: int64 (n,).
    """

    lam: np.ndarray
    box: np.ndarray
    partner: np.ndarray


@kernel
def _boxes(shares, us, size, boxes):
    for k in range(shares.size):
        half = int(size * np.sqrt(1.0 - shares[k])) // 2
        y, x = int(us[k, 1] * size), int(us[k, 2] * size)
        boxes[k, 0], boxes[k, 1] = max(y - half, 0), max(x - half, 0)
        boxes[k, 2], boxes[k, 3] = min(y + half, size), min(x + half, size)


@kernel
def _draws(seed, step, epoch, stream, result):
    for k in range(result.shape[0]):
        result[k, 0], result[k, 1], result[k, 2], result[k, 3] = uniforms(seed, step, epoch, stream, k)


def sample_cutmix(seed, epoch, step, group, batch, count, size, alpha, *, chunk=0, first=0, per_row=False):
    """Draw a CutMix (Yun et al., arXiv 1905.04899) for `count` views of each of `batch` images, as IDMM's authors do.

    lam ~ Beta(alpha, alpha), folded to max(lam, 1 - lam); the box's side is int(size * sqrt(1 - lam)), its centre uniform
    over the pixels, clipped at the edges; lam is then what the clipped box leaves. One box holds for a whole group, and
    the partner permutation runs over all its rows, so a row may meet another view of its own image, or itself.

    chunk: if not 0, so many neighbouring images mix among themselves only, with a box of their own. `first` is then the
    place of the first image in the global batch, a multiple of `chunk`, and the draw is the same however the global batch
    is split. per_row: a box of its own for every row. `alpha` 0 means no mixing.
    """
    rows = batch * count
    if alpha == 0:
        return CutMix(np.ones(rows), np.zeros((rows, 4), np.int64), np.arange(rows))
    lam, box, partner = np.empty(rows), np.empty((rows, 4), np.int64), np.empty(rows, np.int64)
    place = np.arange(rows).reshape(count, batch)  # rows are crop-major
    length = chunk or batch
    for start in range(0, batch, length):
        mine = place[:, start : start + length].reshape(-1)
        stream = CUTMIX_STREAM + 2 * group + (1 << 12) * ((first + start) // length if chunk else 0)
        draws = np.empty((mine.size if per_row else 1, 4))
        _draws(seed, step, epoch, stream, draws)
        shares = betaincinv(alpha, alpha, draws[:, 0])
        boxes = np.empty((draws.shape[0], 4), np.int64)
        _boxes(np.maximum(shares, 1.0 - shares), draws, size, boxes)
        box[mine] = boxes
        partner[mine] = mine[permutation(seed, step, epoch, stream + 1, mine.size)]
    lam[:] = 1.0 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (size * size)
    return CutMix(lam, box, partner)


def sample_mixup(seed, epoch, step, n, alpha):
    """(share, partner int64 (n,)): share ~ Beta(alpha, alpha), folded to its larger half (Zhang et al., arXiv 1710.09412)."""
    share = betaincinv(alpha, alpha, uniforms(np.uint64(seed), step, epoch, MIXUP_STREAM, 0)[0])
    return max(share, 1 - share), permutation(np.uint64(seed), step, epoch, MIXUP_STREAM + 1, n)
