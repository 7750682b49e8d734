"""The linear head, for instances and for classes."""

from torch import nn

from .backbone import Normalize


def init_head(dim, classes):
    """Linear (dim -> classes) with bias: weight truncated normal of std 0.02, bias 0, as IDMM's authors do."""
    head = nn.utils.skip_init(nn.Linear, dim, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


class Classifier(nn.Module):
    """Backbone and linear layer, from uint8 images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, backbone, head):
        super().__init__()
        self.normalize, self.backbone, self.head = Normalize(), backbone, head

    def forward(self, images, partner=None, share=None):
        """With `partner` (int64 (B,)) and `share` (float): mixup, x = share * x + (1 - share) * x[partner]."""
        x = self.normalize(images)
        if partner is not None:
            x = share * x + (1 - share) * x[partner]
        return self.head(self.backbone(x))
