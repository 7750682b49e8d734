"""Backbones: T2T-ViT against plain torch, sizes, features, other resolutions."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

from idmm_fast.models import create_backbone, feature_dim, load_backbone, save_backbone


def reference(state, images, kind, heads, depth):
    """T2T-ViT's class token after the last norm, from the weights alone: unfolding, softmax and random features written out."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(name, x, eps=1e-5):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def mlp(name, x):
        x = linear(f"{name}.fc1", x)
        return linear(f"{name}.fc2", 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))

    def patches(x, size, stride, padding):
        x = F.pad(x, (padding,) * 4)
        n = (x.shape[-1] - size) // stride + 1
        cut = [x[:, :, i * stride : i * stride + size, j * stride : j * stride + size].flatten(1) for i in range(n) for j in range(n)]
        return torch.stack(cut, 1)

    def narrow(name, x):
        wide = norm(f"{name}.norm1", x)
        if kind == "transformer":
            q, k, v = linear(f"{name}.qkv", wide).split(64, -1)
            y = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(x.shape[-1]), -1) @ v
        else:
            k, q, v = linear(f"{name}.kqv", wide).split(64, -1)
            w = state[f"{name}.w"]
            k, q = (torch.exp(torch.einsum("bti,mi->btm", t, w) - t.square().sum(-1, keepdim=True) / 2) / math.sqrt(32) for t in (k, q))
            scores = torch.einsum("btm,bsm->bts", q, k)
            y = scores / (scores.sum(-1, keepdim=True) + 1e-8) @ v
        y = v + linear(f"{name}.proj", y)
        return y + mlp(f"{name}.mlp", norm(f"{name}.norm2", y))

    x = images
    for k, (size, stride, padding) in enumerate(((7, 4, 2), (3, 2, 1))):
        x = narrow(f"tokens_to_token.attention.{k}", patches(x, size, stride, padding)).transpose(1, 2)
        side = math.isqrt(x.shape[-1])
        x = x.reshape(x.shape[0], 64, side, side)
    x = linear("tokens_to_token.project", patches(x, 3, 2, 1))
    x = torch.cat([state["cls_token"].expand(x.shape[0], -1, -1), x], 1)
    position = torch.zeros(x.shape[1:], dtype=torch.float64)
    for p in range(x.shape[1]):
        for j in range(x.shape[2]):
            angle = p / 10000 ** (2 * (j // 2) / x.shape[2])
            position[p, j] = math.cos(angle) if j % 2 else math.sin(angle)
    x = x + position
    for b in range(depth):
        q, k, v = linear(f"blocks.{b}.attn.qkv", norm(f"blocks.{b}.norm1", x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1) @ v
        x = x + linear(f"blocks.{b}.attn.proj", y.transpose(1, 2).flatten(2))
        x = x + mlp(f"blocks.{b}.mlp", norm(f"blocks.{b}.norm2", x))
    return norm("norm", x)[:, 0]


@pytest.mark.parametrize(("name", "kind"), [("t2t_vit_7", "performer"), ("t2t_vit_t_14", "transformer")])
def test_t2t_vit_is_the_papers(name, kind):
    torch.manual_seed(0)
    model = create_backbone(name, 48, options={"depth": 2}).eval()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):  # so that a swapped norm is seen
        torch.nn.init.normal_(norm.weight, 1, 0.2)
        torch.nn.init.normal_(norm.bias, 0, 0.2)
    model, images = model.double(), torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        wanted = reference(model.state_dict(), images, kind, model.num_features // 64, 2)
        assert torch.allclose(model(images), wanted, atol=1e-6)  # the position embedding and the random features are in float32


@pytest.mark.parametrize(("name", "millions"), [
    ("t2t_vit_7", 4.3), ("t2t_vit_14", 21.5), ("t2t_vit_t_14", 21.5), ("t2t_vit_19", 39.2), ("t2t_vit_24", 64.1),
])  # fmt: skip
def test_t2t_vit_has_the_papers_number_of_parameters(name, millions):
    """Within 1 %; the paper's counts are with the classifier, and with what is fixed (position embedding, random features)."""
    model = timm.create_model(name)
    assert sum(p.numel() for p in (*model.parameters(), *model.buffers())) == pytest.approx(millions * 1e6, rel=0.01)


def test_performers_random_features_estimate_the_softmax_kernel():
    """Over many draws of the features their mean product is the closed form, within three standard errors. It is a little below exp(q . k):"""
    from idmm_fast.models.t2t import TokenPerformer

    torch.manual_seed(0)
    q, k = 0.3 * torch.randn(1, 1, 64), 0.3 * torch.randn(1, 1, 64)
    seen = []
    for _ in range(400):
        layer = TokenPerformer(64, 64)
        seen.append((layer.features(q) * layer.features(k)).sum().item())
    seen = torch.tensor(seen)
    wanted = torch.exp((q * k).sum()).item()
    # Rows of an orthogonal matrix times sqrt(m) are sqrt(m) long where normal ones are sqrt(64): the released scale, so the estimate is
    # of a slightly narrower kernel: the expectation of exp(w . x) over a sphere of radius sqrt(32), a Bessel function, here as its series.
    s2 = (q + k).square().sum().item()
    radius2 = 32
    expectation = sum((radius2 * s2 / 4) ** n / (math.factorial(n) * math.prod(32 + i for i in range(n))) for n in range(30))
    expectation *= math.exp(-(q.square().sum() + k.square().sum()).item() / 2)
    assert abs(seen.mean().item() - expectation) < 3 * seen.std().item() / 20
    assert expectation < wanted


@pytest.mark.parametrize(("name", "dim"), [
    ("deit_tiny_patch16_224", 192), ("pvt_v2_b0", 256), ("t2t_vit_7", 256), ("t2t_vit_t_14", 384), ("swin_tiny_patch4_window7_224", 768),
])  # fmt: skip
def test_backbones_give_features_at_any_resolution(name, dim):
    for size in (112, 224):
        model = create_backbone(name, size).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, size, size)).shape == (1, dim)
        assert feature_dim(model) == dim


@pytest.mark.parametrize("name", ["t2t_vit_7", "pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_weights_move_to_another_resolution(name, tmp_path):
    """What has no learnt position embedding takes every tensor as it is; Swin's tables are resampled where the window is another."""
    small, large = create_backbone(name, 112), create_backbone(name, 224)
    tables = [m.relative_position_bias_table for m in small.modules() if hasattr(m, "relative_position_bias_table")]
    for table in tables:
        torch.nn.init.constant_(table, 0.3)
    save_backbone(small, tmp_path / "b.safetensors")
    load_backbone(large, tmp_path / "b.safetensors")
    for key, value in large.state_dict().items():
        if key.endswith("bias_table"):
            assert torch.allclose(value, torch.tensor(0.3)), key
        else:
            assert torch.equal(small.state_dict()[key], value), key


def test_saved_backbone_loads_in_timm(tmp_path):
    model = create_backbone("deit_tiny_patch16_224", 112).eval()
    save_backbone(model, tmp_path / "b.safetensors")
    again = timm.create_model("deit_tiny_patch16_224", img_size=112, num_classes=0, checkpoint_path=str(tmp_path / "b.safetensors")).eval()
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_t2t_vit_refuses_sizes_that_do_not_split():
    with pytest.raises(ValueError, match="multiple of 16"):
        create_backbone("t2t_vit_7", 100)
