"""Muon for the matrices of the backbone, AdamW for the rest; AdamW alone is what torch makes of it."""

import numpy as np
import pytest
import timm
import torch
from helpers import FINETUNE, TINY_VIT, read_losses, tiny_config
from timm.optim import param_groups_layer_decay
from torch import nn

from idmm_fast.config import ConfigError
from idmm_fast.methods import IDMM
from idmm_fast.models import Classifier, create_backbone, init_head
from idmm_fast.runtime.device import Runtime
from idmm_fast.train import checkpoint
from idmm_fast.train import muon as muon_module
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.optim import clip_each_grad, make_optimizers, set_schedule
from idmm_fast.train.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return IDMM(create_backbone("vit_tiny_patch16_224", 32, 0.0, TINY_VIT), 10)


@pytest.fixture
def training(tiny_beton, tmp_path):
    return tiny_config(tiny_beton, tmp_path, training__optimizer="muon").training


def set_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def step(optimizers, training, bad=0.0):
    set_schedule(optimizers, training, 1, 1 << 40, 1)  # behind the warm-up: the whole learning rate
    for optimizer in optimizers:
        optimizer.found_inf = torch.tensor(bad)
        optimizer.step()


def copies(tensors):
    return [t.detach().clone() for t in tensors]


def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else(model, training):
    adamw, muon = make_optimizers(model, training)
    name_of = {id(p): name for name, p in model.named_parameters()}
    chosen = {name_of[id(p)] for group in muon.param_groups for p in group["params"]}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert chosen == {f"backbone.blocks.{k}.{layer}.weight" for k in range(TINY_VIT["depth"]) for layer in layers}
    rest = {name_of[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert chosen | rest == set(name_of.values())
    assert not chosen & rest


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
def test_steps_are_those_of_torchs_muon(model, training, monkeypatch):
    """torch iterates in bfloat16 whatever the processor."""
    monkeypatch.setattr(muon_module, "cpu_has_bf16", lambda: True)
    training.weight_decay = 0.1
    _, muon = optimizers = make_optimizers(model, training)
    mine = muon.param_groups[0]["params"]
    reference = [p.requires_grad_() for p in copies(mine)]
    theirs = torch.optim.Muon(reference, lr=training.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        set_gradients(model, seed)
        for p, r in zip(mine, reference):
            r.grad = p.grad.clone()
        step(optimizers, training)
        theirs.step()
    for p, r in zip(mine, reference):
        torch.testing.assert_close(muon.state[p]["momentum_buffer"], theirs.state[r]["momentum_buffer"])
        torch.testing.assert_close(p, r, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("low", [True, False])
def test_an_update_is_orthogonal_and_as_large_as_adamws(model, training, monkeypatch, low):
    """All singular values are near 0.2 lr sqrt(max(A, B)): 0.6 to 1.3 of it, as five iterations leave them."""
    monkeypatch.setattr(muon_module, "cpu_has_bf16", lambda: low)
    training.weight_decay = 0.0
    _, muon = optimizers = make_optimizers(model, training)
    matrices = muon.param_groups[0]["params"]
    before = copies(matrices)
    set_gradients(model)
    step(optimizers, training)
    for p, old in zip(matrices, before):
        values = torch.linalg.svdvals((p.detach() - old).double()) / (0.2 * training.lr * max(p.shape) ** 0.5)
        assert 0.5 < values.min() <= values.max() < 1.4


def test_a_step_that_is_skipped_leaves_weights_and_momentum(model, training):
    _, muon = optimizers = make_optimizers(model, training)
    set_gradients(model, 0)
    step(optimizers, training)
    buffers = [muon.state[p]["momentum_buffer"] for p in muon.param_groups[0]["params"]]
    weights, momenta = copies(model.parameters()), copies(buffers)
    set_gradients(model, 1)
    model.backbone.blocks[0].attn.qkv.weight.grad[0, 0] = float("nan")
    step(optimizers, training, bad=1.0)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), weights))
    assert all(torch.equal(m, old) for m, old in zip(buffers, momenta))
    set_gradients(model, 1)
    step(optimizers, training)
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), weights))


def test_clipped_gradients_are_those_of_torch_for_one_parameter_after_another(model):
    parameters = list(model.parameters())
    for max_norm in (0.5, 1e9):
        set_gradients(model)
        parameters[3].grad = None
        wanted = [None if p.grad is None else p.grad.clone() for p in parameters]
        for p in parameters:
            torch.nn.utils.clip_grad_norm_([p], max_norm)
        wanted, given = [p.grad for p in parameters], wanted
        for p, g in zip(parameters, given):
            p.grad = g
        clip_each_grad(parameters, max_norm)
        assert parameters[3].grad is None
        assert all(torch.equal(p.grad, w) for p, w in zip(parameters, wanted) if w is not None)


def test_rates_and_decays_are_the_schedules_times_those_of_each_group(tiny_beton, tmp_path):
    """In the middle of a cosine both are half way from their first to their last value."""
    values = {"training__lr": 1.0, "training__weight_decay": 0.2, "training__weight_decay_end": 0.6}
    training = tiny_config(tiny_beton, tmp_path, **values).training
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "scale": s, "decays": d} for s, d in ((1, 1), (0.5, 0), (0.25, 1))
    ]
    optimizer = torch.optim.AdamW(groups)
    set_schedule([optimizer], training, 5, 10, 0)
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [pytest.approx(pair) for pair in ((0.5, 0.4), (0.25, 0.0), (0.125, 0.4))]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_layers_learn_at_the_rates_of_timms_layer_decay(tiny_beton, tmp_path, optimizer):
    values = {"training__layer_decay": 0.5, "training__optimizer": optimizer, "training__decay_norm_bias": False}
    training = tiny_config(tiny_beton, tmp_path, FINETUNE, **values).training
    theirs = create_backbone("vit_tiny_patch16_224", 32, 0.0, TINY_VIT)
    model = Classifier(theirs, init_head(32, 4))
    optimizers = make_optimizers(model, training)
    mine = {id(p): group for o in optimizers for group in o.param_groups for p in group["params"]}
    assert len(mine) == sum(1 for _ in model.parameters())
    theirs.head = model.head  # timm counts layers from the classifier
    for group in param_groups_layer_decay(theirs, weight_decay=1.0, layer_decay=0.5):
        for p in group["params"]:
            assert mine[id(p)]["scale"] == group["lr_scale"]
            assert mine[id(p)]["decays"] == group["weight_decay"]
    assert {group["scale"] for group in mine.values()} == {1.0, 0.5, 0.25, 0.125}  # head, two blocks, embeddings


def test_layers_between_the_blocks_and_the_classifier_learn_at_timms_rates(tiny_beton, tmp_path):
    training = tiny_config(tiny_beton, tmp_path, FINETUNE, training__layer_decay=0.5).training
    theirs = timm.create_model("convnext_atto", num_classes=4, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    rates = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(theirs, weight_decay=1.0, layer_decay=0.5)
        for p in group["params"]
    }
    head, theirs.head.fc = theirs.head.fc, nn.Identity()
    optimizers = make_optimizers(Classifier(theirs, head), training)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert {id(p): group["scale"] for group in groups for p in group["params"]} == rates


def test_muon_takes_each_layers_rate(training):
    """Two equal matrices with equal gradients, in one product; the second one learns at half the rate."""
    first, second = (torch.nn.Parameter(torch.eye(4)) for _ in range(2))
    muon = muon_module.Muon([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.05}])
    for p in (first, second):
        p.grad = torch.arange(16.0).reshape(4, 4)
    muon.step()
    torch.testing.assert_close(first - torch.eye(4), 2 * (second - torch.eye(4)))


def test_a_backbone_that_does_not_tell_its_layers_refuses_layer_decay(tiny_beton, tmp_path):
    values = {"model__name": "t2t_vit_7", "model__options": {"depth": 1}, "training__layer_decay": 0.5}
    with pytest.raises(ConfigError, match=r"training\.layer_decay: a T2TViT does not tell its layers"):
        finetune(tiny_config(tiny_beton, tmp_path / "run", FINETUNE, **values))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_fp16_steps_are_those_of_fp32_where_nothing_overflows(tiny_beton, tmp_path, monkeypatch, name):
    """The scale is a power of two, so gradients come back as they were: a scaler alone changes no curve."""
    options = {"training__optimizer": name, "training__epochs": 2}
    plain = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "plain", **options)))
    monkeypatch.setattr(Runtime, "scaler", lambda self: torch.amp.GradScaler("cpu", enabled=True))
    scaled = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "scaled", **options)))
    assert np.allclose(plain, scaled, rtol=1e-5)


def test_muon_learns_in_both_trainings(tiny_beton, tmp_path):
    curve = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "run", training__optimizer="muon")))
    assert curve[-4:].mean() < curve[:4].mean()
    assert not np.allclose(curve, read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "adamw"))))
    for name in ("muon", "adamw"):
        values = {"training__optimizer": name, "training__epochs": 2, "model__init": str(tmp_path / "run")}
        finetune(tiny_config(tiny_beton, tmp_path / f"tuned_{name}", FINETUNE, **values))
    assert not np.allclose(*(read_losses(tmp_path / f"tuned_{name}") for name in ("muon", "adamw")))


def test_a_run_begun_before_the_key_existed_goes_on_with_adamw(tiny_beton, tmp_path):
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=2))
    whole = read_losses(folder)
    first, last = checkpoint.listing(folder / "checkpoints")
    state = checkpoint.load(first)
    del state["config"]["training"]["optimizer"]
    last.unlink()
    checkpoint.write(first, state)
    with pytest.raises(ConfigError, match=r"training\.optimizer=adamw, not muon"):
        pretrain(
            tiny_config(tiny_beton, folder, training__epochs=2, training__resume="auto", training__optimizer="muon")
        )
    pretrain(tiny_config(tiny_beton, folder, training__epochs=2, training__resume="auto"))
    assert np.array_equal(read_losses(folder), whole)
