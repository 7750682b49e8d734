"""Backbones that get images of several sizes: as if made for each, with gradients that reach the position embedding."""

import math

import pytest
import torch
from torch.nn.functional import interpolate

from idmm_fast.models import create_backbone

VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
PVT = {"depths": [1, 1, 1, 1]}


def grown(backbone):
    """The backbone with weights that all count, in evaluation mode."""
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return backbone.eval()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
@pytest.mark.parametrize("other", [32, 80])
def test_a_vit_sees_another_size_as_one_made_for_it(name, other):
    """Features, and gradients of all weights; its positions are torch's bicubic resampling of those here."""
    torch.manual_seed(0)
    model = grown(create_backbone(name, 48, options=VIT, further_sizes=[48, other]))
    made_for_it = create_backbone(name, other, options=VIT).eval()
    positions = model.pos_embed
    own = positions.shape[1] - 9  # of class tokens
    grid = positions[:, own:].unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    grid = interpolate(grid, (other // 16, other // 16), mode="bicubic", antialias=True)
    resampled = torch.cat([positions[:, :own], grid.flatten(2).transpose(1, 2)], 1)
    weights, images = dict(model.named_parameters()), torch.randn(3, 3, other, other)
    found = model(images)
    wanted = torch.func.functional_call(made_for_it, weights | {"pos_embed": resampled}, images)
    assert torch.allclose(found, wanted, atol=1e-5)
    gradients = [torch.autograd.grad((x * x).sum(), list(weights.values())) for x in (found, wanted)]
    for key, ours, theirs in zip(weights, *gradients):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4), key
    assert gradients[0][list(weights).index("pos_embed")].abs().min() > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("deit_tiny_distilled_patch16_224", VIT),
        ("deit3_small_patch16_224", VIT),
        ("vit_small_patch16_dinov3", VIT),
        ("pvt_v2_b0", PVT),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("swinv2_tiny_window8_256", SWIN),
    ],
)
def test_at_its_own_size_it_is_the_model_without_other_sizes(name, options):
    """The same random weights, names and features; so a run's weights fit the model that evaluates and fine-tunes."""
    made = []
    for sizes in ((), (64, 96)):
        torch.manual_seed(0)
        made.append(create_backbone(name, 96, options=options, further_sizes=sizes))
    plain, model = made
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    images = {size: torch.randn(2, 3, size, size) for size in (64, 96)}
    plain, model = grown(plain), grown(model)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(images[96]), plain(images[96]))
    small = model(images[64])
    assert small.shape == model(images[96]).shape
    small.square().sum().backward()
    assert all(math.isfinite(p.grad.sum()) for p in model.parameters() if p.grad is not None)
    assert sum(p.grad is not None and p.grad.any() for p in model.parameters()) > 10


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("t2t_vit_7", 64, "the position embedding of T2T-ViT is for images of one size"),
        ("vit_tiny_patch16_224", 100, r"Input height \(100\) should be divisible by patch size \(16\)"),
        ("levit_128s", 64, ".*"),
    ],
)
def test_what_can_not_take_another_size_says_which_model_and_what_to_do(name, size, why):
    with pytest.raises(
        ValueError,
        match=rf"crops of {size} pixels do not go with '{name}' at model\.image_size=112: {why}\. Use another size in "
        r"crops\.groups and crops\.schedule, 112 for all of them, or a ViT or PVTv2",
    ):
        create_backbone(name, 112, further_sizes=[112, size])


def test_an_image_size_that_patches_do_not_divide_is_told_where_others_are_wanted():
    with pytest.raises(
        ValueError, match=r"model\.image_size=100 does not go with crops of other sizes and 'vit_tiny_.*16"
    ):
        create_backbone("vit_tiny_patch16_224", 100, options=VIT, further_sizes=[96])


def test_a_margin_that_no_patch_covers_is_said():
    with pytest.warns(
        UserWarning,
        match=r"the last 4 of 100 pixels a side are never seen: model\.image_size is no multiple of the 16 pixels of a "
        r"patch of 'vit_tiny_patch16_224', as 96 and 112 are",
    ):
        create_backbone("vit_tiny_patch16_224", 100, options=VIT)
