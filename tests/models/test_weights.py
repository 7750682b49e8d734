"""Weights: from timm, to timm, in others' wrappings, at another resolution."""

import argparse
import json
import pickle
import re
import shlex

import pytest
import torch
import yaml
from helpers import FINETUNE, TINY_VIT, tiny_config

from idmm_fast.models import (
    Classifier,
    Normalize,
    create_backbone,
    init_head,
    load_backbone,
    load_trained,
    normalization_of,
    save_backbone,
)
from idmm_fast.models.read_weights import read_weights
from idmm_fast.train import checkpoint
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import pretrain

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
    names = ["red", "green", "blue", "yellow"]
    assert list(theirs.pretrained_cfg["label_names"]) == names
    assert checkpoint.newest(tmp_path / "f" / "checkpoints")[1]["label_names"] == names
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    prepared = theirs.pretrained_cfg
    assert prepared["input_size"] == (3, size, size) or list(prepared["input_size"]) == [3, size, size]
    mean, std = (torch.tensor(prepared[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(trained.eval()(images), theirs.eval()((images / 255 - mean) / std), atol=1e-4)


def test_position_embedding_is_resampled_for_another_resolution(tmp_path):
    """The class token's place is kept, the grid resampled (a constant one stays constant), all else taken as it is."""
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


def test_weights_of_another_model_are_told_with_the_keys_that_fit(tmp_path):
    """As they are typed: read by a shell, and as YAML, they are the model of the run."""
    options = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = {"name": "vit_tiny_patch16_224", "options": options, "image_size": 16}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "logging": {"run_dir": "x"}}))
    save_backbone(create_backbone(model["name"], 16, 0.0, options), tmp_path / "backbone.safetensors")
    other = create_backbone(model["name"], 16, 0.0, options | {"embed_dim": 16})
    with pytest.raises(ValueError, match="does not fit this model") as told:
        load_backbone(other, tmp_path)
    name, typed = shlex.split(re.search(r"\((--model\.name=.*)\), and", str(told.value))[1])
    assert name == f"--model.name={model['name']}"
    assert yaml.safe_load(typed.removeprefix("--model.options=")) == options


def test_unknown_model_name_lists_similar_ones():
    with pytest.raises(ValueError, match="deit_tiny"):
        create_backbone("deit_tny_patch16_224", 112)


def tiny(seed=0):
    """A tiny ViT of 32 pixels, in evaluation mode."""
    torch.manual_seed(seed)
    return create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT).eval()


def prefixed(prefix, network, **more):
    return {prefix + key: value for key, value in network.state_dict().items()} | more


HEAD = torch.arange(64.0).view(2, 32)
# What others save, each with the weights of tiny(1) where they are wanted and those of tiny(2) where not.
WRAPPED = {
    "module": lambda right, wrong: {"model": prefixed("module.", right)},
    "compiled": lambda right, wrong: {"state_dict": prefixed("module._orig_mod.", right), "epoch": 3},
    "lightning": lambda right, wrong: {"state_dict": prefixed("model.backbone.", right), "callbacks": {"a": 1}},
    "dino": lambda right, wrong: {
        "student": prefixed("module.backbone.", wrong),
        "teacher": prefixed("backbone.", right, **{"head.mlp.0.weight": torch.zeros(3)}),
        "args": argparse.Namespace(lr=1e-3, arch="vit_tiny"),
    },
    "a student alone": lambda right, wrong: {"student": prefixed("module.backbone.", right), "epoch": 3},
    "one dict": lambda right, wrong: prefixed("student.backbone.", wrong) | prefixed("teacher.backbone.", right),
    "moco": lambda right, wrong: {
        "state_dict": prefixed("module.base_encoder.", right) | {"module.predictor.0.weight": torch.zeros(3)}
    },
    "mae": lambda right, wrong: {
        "model": prefixed("", right, mask_token=torch.zeros(1)),
        "args": argparse.Namespace(mask_ratio=0.75),
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_in_what_others_wrap_them_in(kind, tmp_path):
    right, wrong, found = tiny(1), tiny(2), tiny(3)
    torch.save(WRAPPED[kind](right, wrong), tmp_path / "w.pth")
    assert load_backbone(found, tmp_path / "w.pth") == len(right.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(x), right(x))


def test_a_wrapped_classifier_is_found_beside_the_backbone(tmp_path):
    network, head = tiny(1), init_head(32, 2)
    for prefix, of_head in (("module.", "module.head."), ("module.backbone.", "module.head.")):
        torch.save(
            {"model": prefixed(prefix, network, **{f"{of_head}weight": HEAD, f"{of_head}bias": HEAD[:, 0]})},
            tmp_path / "w.pth",
        )
        with torch.no_grad():
            load_backbone(tiny(2), tmp_path / "w.pth", head.requires_grad_(False))
        assert torch.equal(head.weight, HEAD)


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("content", [{"model": {}, "x": Evil()}, {"args": argparse.Namespace(x=Evil())}])
def test_nothing_but_tensors_values_and_namespaces_is_unpickled(content, tmp_path, capsys):
    torch.save(content, tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content))
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(ValueError, match="damaged or holds more than tensors"):
            load_backbone(tiny(), tmp_path / name)
    assert capsys.readouterr().out == ""
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        load_backbone(tiny(), tmp_path / "w.safetensors")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        load_backbone(tiny(), tmp_path / "w.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"none of the \d+ tensors of this model; it begins with conv1\.weight"):
        load_backbone(tiny(), tmp_path / "w.pth")


@pytest.fixture
def timm_cache(tmp_path, monkeypatch):
    """A cache of huggingface_hub, without a network, that holds random weights as deit_tiny_patch16_224.fb_in1k."""
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--timm--deit_tiny_patch16_224.fb_in1k"
    (repository / "snapshots" / "0").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    model = timm.create_model("deit_tiny_patch16_224").eval()
    save_file(model.state_dict(), repository / "snapshots" / "0" / "model.safetensors")
    return model


def test_timms_own_weights_come_by_name_through_its_cache(timm_cache):
    backbone = create_backbone("deit_tiny_patch16_224", 224).eval()
    state = torch.get_rng_state()
    load_backbone(backbone, "timm:deit_tiny_patch16_224.fb_in1k")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(backbone(x), timm_cache.forward_head(timm_cache.forward_features(x), pre_logits=True))
    for name, says in (
        ("deit_small_patch16_224.fb_in1k", "timm could not load .* there is no network"),
        ("deit_tiny_patch16_224.nowhere", "timm has no weights"),
        ("nowhere", "timm has no weights 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=says):
            load_backbone(backbone, f"timm:{name}")


def test_the_normalisation_of_weights_is_kept_from_then_on(tiny_beton, tmp_path):
    """Of a file beside timm's config.json: pretraining, its fine-tuning, and the config.json of that one have it."""
    from safetensors.torch import save_file

    (tmp_path / "theirs").mkdir()
    save_file(tiny(1).state_dict(), tmp_path / "theirs" / "model.safetensors")
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": half}))
    assert normalization_of("timm:vit_tiny_patch16_224.augreg_in21k")["mean"] == [0.5, 0.5, 0.5]
    assert normalization_of("timm:deit_tiny_patch16_224.fb_in1k")["std"] == [0.229, 0.224, 0.225]
    assert normalization_of(tmp_path) == {}
    first = tiny_config(tiny_beton, tmp_path / "p", model__init=str(tmp_path / "theirs"), training__epochs=1)
    pretrain(first)
    assert normalization_of(tmp_path / "p") == half
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    again = load_trained(tmp_path / "p").network
    mean, std = (torch.tensor(half[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(again[0](images), (images / 255 - mean) / std, atol=1e-6)
    finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, model__init=str(tmp_path / "p"), training__epochs=1))
    written = json.loads((tmp_path / "f" / "config.json").read_text())
    assert {key: written["pretrained_cfg"][key] for key in half} == half
    assert normalization_of(tmp_path / "f") == half


def test_pretraining_starts_from_weights_at_another_resolution(tiny_beton, tmp_path):
    """With a learning rate of 0 it ends with them, but for the position embedding, which is resampled."""
    import timm

    own = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3, **TINY_VIT)
    torch.save({"state_dict": {f"module.{k}": v for k, v in own.state_dict().items()}}, tmp_path / "w.pth")
    values = {"model.init": str(tmp_path / "w.pth"), "training.lr": 0.0, "training.epochs": 1}
    run = pretrain(tiny_config(tiny_beton, tmp_path / "p", **values))
    network = load_trained(run).network
    assert isinstance(network[0], Normalize)
    ended = network[1].state_dict()
    for key, value in own.state_dict().items():
        if not key.startswith(("head.", "pos_embed")):
            assert torch.equal(ended[key], value), key
    resampled = timm.layers.resample_abs_pos_embed(own.pos_embed, [4, 4])
    assert torch.allclose(ended["pos_embed"], resampled, atol=1e-6)


def test_a_run_that_has_not_ended_is_called_that(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run is a training that has not ended: resume it .* file in .*checkpoints"):
        read_weights(tmp_path / "run")
