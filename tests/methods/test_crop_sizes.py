"""Crop groups of several sizes: one pass of the backbone for each size, and the loss of passes group by group."""

import pytest
import torch
from helpers import TINY_VIT, tiny_options

from idmm_fast.methods import IDMM, base, create_method, idmm
from idmm_fast.models import create_backbone

SIZES, COUNTS = [32, 16, 32], [2, 1, 2]


def make(name):
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT, further_sizes=SIZES)
    if name in ("idmm", "fused"):
        return IDMM(backbone, 4, fused=name == "fused").eval()
    return create_method(name, backbone, torch.arange(4) // 2, COUNTS, tiny_options(name)).eval()


@pytest.mark.parametrize("name", ["idmm", "fused", "simclr", "supcon", "dino"])
def test_groups_of_one_size_share_a_pass(name, monkeypatch):
    model = make(name)
    images = [torch.randint(0, 256, (4 * n, 3, s, s), dtype=torch.uint8) for n, s in zip(COUNTS, SIZES)]
    rows = [torch.arange(4).repeat(n) for n in COUNTS]
    lam = [torch.ones(4 * n) for n in COUNTS]
    passes = []
    model.backbone.register_forward_pre_hook(lambda module, given: passes.append(tuple(given[0].shape)))
    found = model(images, rows, rows, lam)
    assert passes == [(16, 3, 32, 32), (4, 3, 16, 16)]
    for module in (base, idmm):
        monkeypatch.setattr(module, "by_size", lambda images: (([g], x) for g, x in enumerate(images)))
    assert torch.isclose(found, model(images, rows, rows, lam), rtol=1e-5)
    assert len(passes) == 2 + 3
    if name == "fused":
        dense = make("idmm")
        dense.backbone.load_state_dict(model.backbone.state_dict())
        dense.head.load_state_dict(model.head.state_dict())
        assert torch.isclose(found, dense(images, rows, rows, lam), rtol=1e-5)
