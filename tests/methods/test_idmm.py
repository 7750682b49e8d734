"""IDMM's forward against its definition."""

import torch
from helpers import TINY_VIT

from idmm_fast.losses import instance_loss
from idmm_fast.methods import IDMM
from idmm_fast.models import Normalize, create_backbone


def test_idmm_loss_is_the_sum_of_the_group_means():
    """One forward over all views, against the definition: group by group."""
    torch.manual_seed(0)
    model = IDMM(create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), 50, label_smoothing=0.1).eval()
    images = [torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8) for n in (4, 8)]
    a, b = ([torch.randint(0, 50, (n,)) for n in (4, 8)] for _ in range(2))
    lam = [torch.rand(n) for n in (4, 8)]
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.228, 0.224, 0.225]).view(3, 1, 1)
    wanted = sum(
        instance_loss(model.head(model.backbone((x / 255.0 - mean) / std)), i, j, w, 0.1)
        for x, i, j, w in zip(images, a, b, lam)
    )
    assert torch.isclose(model(images, a, b, lam), wanted, atol=1e-5)
    assert torch.allclose(
        Normalize()(images[0]),
        (images[0] / 255.0 - mean) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
        atol=1e-5,
    )
