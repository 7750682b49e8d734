"""IDMM's forward against its definition."""

import pytest
import torch
from helpers import TINY_VIT, tiny_config
from torch.nn.functional import cosine_similarity, cross_entropy

from idmm_fast.config import ConfigError
from idmm_fast.losses import instance_loss, sqrt_kl_loss
from idmm_fast.methods import IDMM, DenseLoss
from idmm_fast.models import Normalize, create_backbone
from idmm_fast.train.pretraining import Pretraining


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


def test_a_temperature_makes_the_logits_cosines():
    """Value, and the exact gradient of all class weights; the square-root loss is of the cosines themselves."""
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT)
    model = IDMM(backbone, 50, label_smoothing=0.0, dense=DenseLoss(temperature=0.2, sqrt_kl=3.0)).eval()
    assert [name for name, _ in model.head.named_parameters()] == ["weight"]
    images, a = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 50, (6,))
    cosines = cosine_similarity(backbone(model.normalize(images))[:, None], model.head.weight[None], dim=2)
    wanted = cross_entropy(cosines / 0.2, a) + 3.0 * sqrt_kl_loss(cosines)
    ours = model([images], [a], [a], [torch.ones(6)])
    assert torch.isclose(ours, wanted, atol=1e-6)
    mine, theirs = (torch.autograd.grad(loss, model.head.weight)[0] for loss in (ours, wanted))
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert (mine.abs().sum(1) > 0).all()  # classes of other images too


@pytest.mark.parametrize("key", ["temperature", "sqrt_kl"])
@pytest.mark.parametrize("fused", [{"head.loss": "fused"}, {"head.sample_rate": 0.5}, {"head.max_dense_mb": 0}])
def test_a_loss_that_needs_all_logits_is_not_fused(tiny_beton, tmp_path, key, fused):
    with pytest.raises(ConfigError, match=rf"head\.{key} needs all logits of a step, 0 MB: take head\.loss=dense"):
        Pretraining(tiny_config(tiny_beton, tmp_path, **fused, **{f"head.{key}": 0.2}))
