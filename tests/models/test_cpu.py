"""The patch embedding for bf16 on a CPU: timm's weights, and its features and gradients to rounding."""

import copy

import pytest
import timm
import torch

from idmm_fast.models import create_backbone
from idmm_fast.models.cpu import PatchProjection, choose_layers
from idmm_fast.runtime.device import Runtime

CPU = torch.device("cpu")
BF16 = Runtime(CPU, torch.bfloat16, True, False)


def small_vit():
    torch.manual_seed(0)
    return create_backbone(
        "vit_tiny_patch16_224", 32, options={"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}
    )


def features_and_gradients(model, images, amp):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        features = model(images)
    features.float().square().sum().backward()
    return [features.detach().float(), *(p.grad for p in model.parameters())]


def distance(found, wanted):
    """The largest distance of a tensor from the one that is wanted, against the length of that."""
    return max((a - b).norm().item() / (b.norm().item() + 1e-6) for a, b in zip(found, wanted, strict=True))


def test_results_and_weights_are_those_of_timms_model():
    """In float32 to 1e-5; in bf16 no further from float32 than timm's own layers are, to a tenth."""
    wanted, found = small_vit(), small_vit()
    names, parameters = [n for n, _ in found.named_parameters()], list(found.parameters())
    choose_layers(found, BF16)
    assert isinstance(found.patch_embed.proj, PatchProjection)
    assert [n for n, _ in found.named_parameters()] == names
    assert all(a is b for a, b in zip(found.parameters(), parameters, strict=True))
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    exact = features_and_gradients(copy.deepcopy(wanted), images, False)
    assert distance(features_and_gradients(copy.deepcopy(found), images, False), exact) < 1e-5
    limit = distance(features_and_gradients(wanted, images, True), exact)
    assert 1e-4 < distance(features_and_gradients(found, images, True), exact) < 1.1 * limit


def test_a_margin_that_no_patch_covers_is_left_out_as_by_the_convolution():
    conv, images = torch.nn.Conv2d(3, 5, 8, stride=8), torch.randn(2, 3, 36, 36)
    assert torch.allclose(PatchProjection(conv)(images), conv(images), atol=1e-5)


@pytest.mark.parametrize(("device", "amp"), [("cpu", None), ("cuda", torch.bfloat16)])
def test_other_devices_and_float32_keep_timms_layers(device, amp):
    model = small_vit()
    choose_layers(model, Runtime(torch.device(device), amp, True, False))
    assert not any(isinstance(m, PatchProjection) for m in model.modules())


def test_overlapping_patches_stay_a_convolution():
    model = timm.create_model("pvt_v2_b0", num_classes=0)
    choose_layers(model, BF16)
    assert not any(isinstance(m, PatchProjection) for m in model.modules())
