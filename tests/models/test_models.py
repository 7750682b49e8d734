"""Backbones: T2T-ViT against plain torch, sizes, features, other resolutions."""

import inspect
import json
import math
import os
import stat
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F

from idmm_fast.loader.evaluation import evaluation_views
from idmm_fast.models import (
    create_backbone,
    feature_dim,
    init_head,
    load_backbone,
    save_backbone,
    save_classifier,
    timm_config,
)
from idmm_fast.runtime.device import Runtime, choose_attention


def reference(state, images, kind, heads, depth):
    """T2T-ViT's class token after the last norm, from the weights alone: unfolding, softmax, random features."""

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
        cut = [
            x[:, :, i * stride : i * stride + size, j * stride : j * stride + size].flatten(1)
            for i in range(n)
            for j in range(n)
        ]
        return torch.stack(cut, 1)

    def narrow(name, x):
        wide = norm(f"{name}.norm1", x)
        if kind == "transformer":
            q, k, v = linear(f"{name}.qkv", wide).split(64, -1)
            y = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(x.shape[-1]), -1) @ v
        else:
            k, q, v = linear(f"{name}.kqv", wide).split(64, -1)
            w = state[f"{name}.w"]
            k, q = (
                torch.exp(torch.einsum("bti,mi->btm", t, w) - t.square().sum(-1, keepdim=True) / 2) / math.sqrt(32)
                for t in (k, q)
            )
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
        assert torch.allclose(
            model(images), wanted, atol=1e-6
        )  # the position embedding and the random features are in float32


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("t2t_vit_7", 4.3),
        ("t2t_vit_14", 21.5),
        ("t2t_vit_t_14", 21.5),
        ("t2t_vit_19", 39.2),
        ("t2t_vit_24", 64.1),
    ],
)
def test_t2t_vit_has_the_papers_number_of_parameters(name, millions):
    """Within 1 %; the paper counts the classifier, and what is fixed (position embedding, random features)."""
    model = timm.create_model(name)
    assert sum(p.numel() for p in (*model.parameters(), *model.buffers())) == pytest.approx(millions * 1e6, rel=0.01)


def test_performers_random_features_estimate_the_softmax_kernel():
    """Over many samples of the features their mean product is the closed form, within three standard errors."""
    from idmm_fast.models.t2t import TokenPerformer

    torch.manual_seed(0)
    q, k = 0.3 * torch.randn(1, 1, 64), 0.3 * torch.randn(1, 1, 64)
    seen = []
    for _ in range(400):
        layer = TokenPerformer(64, 64)
        seen.append((layer.features(q) * layer.features(k)).sum().item())
    seen = torch.tensor(seen)
    wanted = torch.exp((q * k).sum()).item()
    # A little below exp(q . k). Rows of an orthogonal matrix times sqrt(m), the released scale, are sqrt(m) long where
    # normal ones are sqrt(64). So the estimate is of a slightly narrower kernel: the expectation of exp(w . x) over a
    # sphere of radius sqrt(32), a Bessel function, here as its series.
    s2 = (q + k).square().sum().item()
    radius2 = 32
    expectation = sum(
        (radius2 * s2 / 4) ** n / (math.factorial(n) * math.prod(32 + i for i in range(n))) for n in range(30)
    )
    expectation *= math.exp(-(q.square().sum() + k.square().sum()).item() / 2)
    assert abs(seen.mean().item() - expectation) < 3 * seen.std().item() / 20
    assert expectation < wanted


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("deit_tiny_patch16_224", 192),
        ("pvt_v2_b0", 256),
        ("t2t_vit_7", 256),
        ("t2t_vit_t_14", 384),
        ("swin_tiny_patch4_window7_224", 768),
    ],
)
def test_backbones_give_features_at_any_resolution(name, dim):
    for size in (112, 224):
        model = create_backbone(name, size).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, size, size)).shape == (1, dim)
        assert feature_dim(model) == dim


@pytest.mark.parametrize("name", ["t2t_vit_7", "pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_weights_move_to_another_resolution(name, tmp_path):
    """Without a learnt position embedding every tensor is taken as it is; Swin's tables are resampled."""
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


VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
# In front of the patches' positions stand: nothing, a class token, registers, two class tokens; or positions are of
# another kind.
FAMILIES = {
    "vit_tiny_patch16_224": VIT,
    "vit_base_patch16_siglip_gap_224": VIT,
    "vit_medium_patch16_reg4_gap_256": VIT,
    "vit_dlittle_patch16_reg1_gap_256": VIT,
    "vit_so150m_patch16_reg4_map_256": VIT,
    "vit_small_patch14_reg4_dinov2": VIT,
    "flexivit_small": VIT,
    "deit3_small_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "vit_small_patch16_rope_ape_224": VIT,
    "eva02_tiny_patch14_224": VIT,
    "vit_small_patch16_dinov3": VIT,
    "beit_base_patch16_224": VIT,
    "beitv2_base_patch16_224": VIT,
    "cait_xxs24_224": VIT,
    "convit_tiny": VIT,
    "xcit_nano_12_p16_224": VIT,
    "vit_relpos_small_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swin_s3_tiny_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "t2t_vit_7": {"depth": 1},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_every_family_changes_its_resolution_as_timm_does(name, tmp_path):
    torch.manual_seed(0)
    models = {size: create_backbone(name, size, options=FAMILIES[name]).eval() for size in (112, 224)}
    images = {size: torch.randn(1, 3, size, size) for size in models}
    for small, large in ((112, 224), (224, 112)):
        for parameter in models[small].parameters():
            torch.nn.init.normal_(parameter, 0, 0.02)
        save_backbone(models[small], tmp_path / "b.safetensors")
        state = {k: v.clone() for k, v in models[small].state_dict().items()}
        assert load_backbone(models[large], tmp_path / "b.safetensors") == len(state)
        resample = getattr(inspect.getmodule(type(models[large])), "checkpoint_filter_fn", lambda state, model: state)
        if name.startswith(
            ("cait", "convit")
        ):  # timm has no resampling of its own for these: the positions of patches alone
            state["pos_embed"] = timm.layers.resample_abs_pos_embed(
                state["pos_embed"], [large // 16] * 2, num_prefix_tokens=0
            )
        wanted = resample(state, models[large])
        for key, value in models[large].state_dict().items():
            assert torch.allclose(value, wanted[key], atol=1e-6), key
        with torch.no_grad():
            features = models[large](images[large])
        assert features.shape == (1, feature_dim(models[large]))
        assert features.isfinite().all()


def test_what_can_not_change_its_resolution_is_told_so(tmp_path):
    for name, wrong in (("pit_ti_224", "pos_embed"), ("levit_128s", "attention_biases")):
        save_backbone(create_backbone(name, 112), tmp_path / "b.safetensors")
        with pytest.raises(
            ValueError, match=rf"first '\S*{wrong}', of shape .* model\.image_size too where a model can't change that"
        ):
            load_backbone(create_backbone(name, 128), tmp_path / "b.safetensors")
    save_backbone(
        create_backbone("vit_tiny_patch16_224", 112, options=VIT), tmp_path / "b.safetensors"
    )  # 49 patches and a class token's place
    with pytest.raises(ValueError, match=r"pos_embed', of shape \(1, 50, 32\) there and \(1, 196, 32\) here"):
        load_backbone(
            create_backbone("vit_tiny_patch16_224", 224, options=VIT | {"no_embed_class": True}),
            tmp_path / "b.safetensors",
        )


def test_a_size_that_only_the_forward_pass_refuses_is_a_sentence():
    with pytest.raises(ValueError, match="timm can't make 'crossvit_tiny_240' at 112 pixels"):
        create_backbone("crossvit_tiny_240", 112)


def section(name, image_size, options=None):
    """The section `model` of a configuration."""
    return SimpleNamespace(name=name, image_size=image_size, options=options or {}, mean=None, std=None)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "coat_lite_tiny"])
def test_classifiers_of_every_kind_load_in_timm(name, tmp_path):
    """Also with two classifiers (distilled), and where a model has the same tensor twice (coat)."""
    options = VIT if name.startswith("deit") else {"embed_dims": [16, 16, 16, 16], "serial_depths": [1, 1, 1, 1]}
    backbone = create_backbone(name, 32, options=options).eval()
    head = init_head(feature_dim(backbone), 3)
    save_classifier(backbone, head, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(timm_config(backbone, section(name, 32, options), "abc")))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(again(x), head(backbone(x)), atol=1e-6)


def test_timm_resizes_an_image_as_our_evaluation_does():
    """timm's transform, made from the config.json that is written, resizes as our loader does, at every size."""
    backbone = create_backbone("vit_tiny_patch16_224", 32, options=VIT)
    for size in range(8, 1025):
        config = timm_config(backbone, section("vit_tiny_patch16_224", size), "abc")["pretrained_cfg"]
        data = timm.data.resolve_data_config({}, pretrained_cfg=config)
        resize, crop = timm.data.create_transform(**data).transforms[:2]
        (view,) = evaluation_views(size)
        assert resize.size == view.resize, size
        assert tuple(crop.size) == (view.size, view.size)
    config = timm_config(backbone, section("vit_tiny_patch16_224", 224), "abc")
    assert config["pretrained_cfg"]["crop_pct"] == 0.875


def test_weights_are_for_those_whom_the_umask_lets_read_them(tmp_path, monkeypatch):
    """As of every file; and nothing is left where a disk was full, nor is what was there before harmed."""
    model, path = create_backbone("vit_tiny_patch16_224", 32, options=VIT), tmp_path / "b.safetensors"
    before = os.umask(0o027)
    try:
        save_backbone(model, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    content = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_backbone(create_backbone("vit_tiny_patch16_224", 32, options=VIT), path)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]
    assert path.read_bytes() == content


def test_saved_backbone_loads_in_timm(tmp_path):
    model = create_backbone("deit_tiny_patch16_224", 112).eval()
    save_backbone(model, tmp_path / "b.safetensors")
    again = timm.create_model(
        "deit_tiny_patch16_224", img_size=112, num_classes=0, checkpoint_path=str(tmp_path / "b.safetensors")
    ).eval()
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_t2t_vit_refuses_sizes_that_do_not_split():
    with pytest.raises(ValueError, match="multiple of 16"):
        create_backbone("t2t_vit_7", 100)


@pytest.mark.parametrize(
    ("size", "patch", "amp", "plain"),
    [
        (32, 8, None, True),
        (64, 8, None, False),
        (64, 8, torch.bfloat16, True),
        (136, 8, torch.bfloat16, False),
    ],
)
def test_attention_of_short_sequences_is_multiplied_out_on_a_cpu(size, patch, amp, plain):
    """To the same features and gradients as torch's fused attention; on a GPU it is left as it is."""
    torch.manual_seed(0)
    model = create_backbone(
        "vit_tiny_patch16_224", size, options={"patch_size": patch, "depth": 2, "embed_dim": 64, "num_heads": 2}
    )
    images = torch.randn(2, 3, size, size)

    def computed():
        model.zero_grad()
        features = model(images)
        features.square().sum().backward()
        return [features.detach(), *(p.grad.clone() for p in model.parameters())]

    wanted = computed()
    choose_attention(model, Runtime(torch.device("cuda"), amp, True, False))
    assert all(block.attn.fused_attn for block in model.blocks)
    choose_attention(model, Runtime(torch.device("cpu"), amp, True, False), 64 * patch)  # larger crops
    assert all(block.attn.fused_attn for block in model.blocks)
    choose_attention(model, Runtime(torch.device("cpu"), amp, True, False), size // 2)
    assert all(block.attn.fused_attn != plain for block in model.blocks)
    for mine, its in zip(computed(), wanted):
        assert torch.allclose(mine, its, atol=1e-4 * max(1.0, its.abs().max().item()))
