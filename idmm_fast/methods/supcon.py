"""SupCon: the views of all images of a class are alike; it uses the labels (Khosla et al., arXiv 2004.11362)."""

from .simclr import SimCLR


class SupCon(SimCLR):
    """labels: int64 (images,). Temperature and width of the projection are those of IDMM's comparison (arXiv 2201.10728)."""

    needs_labels = True

    def __init__(self, backbone, labels, temperature=0.5, hidden=2048, dim=256):
        super().__init__(backbone, temperature, hidden, dim)
        self.register_buffer("labels", labels, persistent=False)

    def alike(self, idx):
        return self.labels[idx]
