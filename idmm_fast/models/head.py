"""The linear head, for instances and for classes."""

from torch import nn


def init_head(dim, classes):
    """Linear (dim -> classes) with bias: weight truncated normal of std 0.02, bias 0, as IDMM's authors do."""
    head = nn.utils.skip_init(nn.Linear, dim, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
