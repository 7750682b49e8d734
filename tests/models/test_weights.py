"""Weights: from timm, to timm, at another resolution."""

import pytest
import torch
from helpers import FINETUNE, TINY_VIT, tiny_config

from idmm_fast.models import Classifier, create_backbone, init_head, load_backbone
from idmm_fast.train import checkpoint
from idmm_fast.train.finetuning import finetune

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_timm_state_dicts_load_as_initial_weights(tiny_beton, tmp_path):
    """timm's state dicts, wrapped or not, at another resolution and with another head; other files are named."""
    import timm

    own = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, **TINY_VIT)
    torch.save(own.state_dict(), tmp_path / "plain.pth")
    torch.save({"model": own.state_dict()}, tmp_path / "wrapped.pth")
    for name in ("plain", "wrapped"):
        backbone = create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT)
        load_backbone(backbone, tmp_path / f"{name}.pth")
        assert torch.equal(backbone.blocks[1].mlp.fc1.weight, own.blocks[1].mlp.fc1.weight)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged or holds more"):
        load_backbone(backbone, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="a classifier for 10 classes, and 4 classes are wanted"):
        finetune(
            tiny_config(
                tiny_beton, tmp_path / "f", FINETUNE, model__init=str(tmp_path / "plain.pth"), model__init_head=True
            )
        )


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, 32),
        ("pvt_v2_b0", {"depths": [1, 1, 1, 1]}, 32),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 24, "window_size": 4},
            32,
        ),
    ],
)
def test_finetuned_model_loads_in_timm(name, options, size, tiny_beton, tmp_path):
    """model.safetensors and config.json, loaded by timm alone, give the logits that the trained classifier gives."""
    import timm

    cfg = tiny_config(
        tiny_beton,
        tmp_path / "f",
        FINETUNE,
        model__name=name,
        model__options=options,
        model__image_size=size,
        training__epochs=1,
    )
    finetune(cfg)
    trained = Classifier(
        create_backbone(name, size, options=options),
        init_head(timm.create_model(name, num_classes=0, **options).num_features, 4),
    )
    trained.load_state_dict(checkpoint.newest(tmp_path / "f" / "checkpoints")[1]["model"])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'f'}", pretrained=True)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    prepared = theirs.pretrained_cfg
    assert prepared["input_size"] == (3, size, size) or list(prepared["input_size"]) == [3, size, size]
    mean, std = (torch.tensor(prepared[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(trained.eval()(images), theirs.eval()((images / 255 - mean) / std), atol=1e-4)


def test_position_embedding_is_resampled_for_another_resolution(tmp_path):
    """The class token's place is kept, the grid resampled (a constant one stays constant), all else taken as it is."""
    from idmm_fast.models import save_backbone

    small, large = (create_backbone("deit_tiny_patch16_224", s) for s in (112, 224))
    with torch.no_grad():
        small.pos_embed[:, 1:] = torch.linspace(-1, 1, 192)
    save_backbone(small, tmp_path / "b.safetensors")
    load_backbone(large, tmp_path / "b.safetensors")
    assert large.pos_embed.shape == (1, 1 + 14 * 14, 192)
    assert torch.allclose(large.pos_embed[:, 0], small.pos_embed[:, 0])
    assert torch.allclose(large.pos_embed[:, 1:], small.pos_embed[:, 1:2].expand(1, 196, 192), atol=1e-5)
    assert torch.equal(large.blocks[3].attn.qkv.weight, small.blocks[3].attn.qkv.weight)
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone(create_backbone("pvt_v2_b0", 112), tmp_path / "b.safetensors")


def test_unknown_model_name_lists_similar_ones():
    with pytest.raises(ValueError, match="deit_tiny"):
        create_backbone("deit_tny_patch16_224", 112)
