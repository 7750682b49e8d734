"""CutMix for a group of views: one box and one partner permutation, drawn before the pixels are made.

Because the draw comes first, the pipeline writes each view's pixels straight to where they end up (outside the box into
the view's own row, inside it into the row of whoever has this view as partner), and mixing costs nothing.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from .philox import CUTMIX_STREAM, permutation, uniforms


@dataclass(frozen=True)
class CutMix:
    """How the n rows of a group are mixed: row i keeps its pixels outside the box and takes partner[i]'s inside it.

    lam: share of a row's own pixels, exactly 1 - box area / image area. box: top, left, bottom, right in pixels, the
    last two exclusive. partner: int64 (n,).
    """

    lam: float
    box: tuple[int, int, int, int]
    partner: np.ndarray


def draw_cutmix(seed, epoch, step, group, n, size, alpha):
    """Draw a CutMix (Yun et al., arXiv 1905.04899) for `n` rows of `size` x `size` pixels, as IDMM's authors do.

    lam ~ Beta(alpha, alpha), folded to max(lam, 1 - lam); the box's side is int(size * sqrt(1 - lam)), its centre uniform
    over the pixels, clipped at the edges; lam is then what the clipped box leaves. The partner permutation runs over
    the whole group, so a row may meet another view of its own image, or itself. `alpha` 0 means no mixing.
    """
    if alpha == 0:
        return CutMix(1.0, (0, 0, 0, 0), np.arange(n))
    stream = CUTMIX_STREAM + 2 * group
    u = uniforms(seed, step, epoch, stream, 0)
    lam = betaincinv(alpha, alpha, u[0])
    lam = max(lam, 1.0 - lam)
    side = int(size * np.sqrt(1.0 - lam))
    y, x = int(u[1] * size), int(u[2] * size)
    top, bottom = max(y - side // 2, 0), min(y + side // 2, size)
    left, right = max(x - side // 2, 0), min(x + side // 2, size)
    lam = 1.0 - (bottom - top) * (right - left) / (size * size)
    return CutMix(lam, (top, left, bottom, right), permutation(seed, step, epoch, stream + 1, n))
