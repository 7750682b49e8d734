"""The other methods: their losses against loops and closed forms; each of them trained in every way.

Stopped, resumed, compiled, in low precision, on two processes.
"""

import json

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY_METHODS, TINY_VIT, method_values, read_losses, start_ranks, tiny_config, tiny_options
from timm.models.levit import Attention
from torch.nn.functional import cross_entropy, kl_div, normalize

from idmm_fast.config import ConfigError, flatten, load_yaml, make_config
from idmm_fast.loader import Augment, MultiCropLoader, Views
from idmm_fast.losses import contrastive_loss, dino_loss
from idmm_fast.losses.dino import update_center
from idmm_fast.methods import METHODS, create_method, options_of
from idmm_fast.methods.base import cosine_momentum, ema_update, momentum_copy
from idmm_fast.methods.dino import DINO
from idmm_fast.methods.moco_v2 import MoCoV2
from idmm_fast.methods.moco_v3 import MoCoV3
from idmm_fast.methods.simclr import SimCLR
from idmm_fast.models import create_backbone, load_backbone
from idmm_fast.models.projector import BatchNorm, mlp
from idmm_fast.train import checkpoint
from idmm_fast.train.pretraining import SCHEMA, pretrain

pytestmark = pytest.mark.usefixtures("without_pictures")

OTHERS = [name for name in METHODS if name != "idmm"]


def unit(n, d, seed=0):
    return normalize(torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def direct(z, ids, temperature):
    """SupCon's equation 2, term by term."""
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if ids[p] == ids[i]]
        below = sum(np.exp(float(z[i] @ z[a]) / temperature) for a in others)
        if positives:
            total -= sum(np.log(np.exp(float(z[i] @ z[p]) / temperature) / below) for p in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize(
    "ids",
    [[0, 1, 2, 3, 4, 5] * 2, [0, 0, 1, 1, 1, 2] * 2, [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0]],
    ids=["crops", "classes", "alone"],
)
def test_contrastive_loss_is_the_double_sum(ids):
    z, ids = unit(12, 5), torch.tensor(ids)
    found = contrastive_loss(z, z, ids, ids, 0.3, torch.arange(12))
    assert found.item() == pytest.approx(direct(z, ids.tolist(), 0.3), rel=1e-5)


def test_two_crops_of_each_image_are_nt_xent():
    """SimCLR's loss as cross entropy over all other rows."""
    z = unit(16, 4)
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    wanted = cross_entropy(logits, (torch.arange(16) + 8) % 16)
    assert torch.isclose(
        contrastive_loss(z, z, torch.arange(16) % 8, torch.arange(16) % 8, 0.5, torch.arange(16)).double(),
        wanted,
        rtol=1e-5,
    )


def test_gradient_of_the_contrastive_loss():
    z = unit(8, 3).requires_grad_()
    ids = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])

    def loss(z):  # in float64, where the loss itself goes down to float32
        similarity = (z @ z.T / 0.2).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
        positive = (ids[:, None] == ids) & ~torch.eye(8, dtype=torch.bool)
        return -(similarity.log_softmax(1).masked_fill(~positive, 0.0).sum(1) / positive.sum(1)).mean()

    (wanted,) = torch.autograd.grad(loss(z), z)
    (found,) = torch.autograd.grad(contrastive_loss(z, z, ids, ids, 0.2, torch.arange(8)), z)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_dino_loss_is_the_sum_over_pairs_of_crops():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4 * 3, 7, generator=generator), torch.randn(2 * 3, 7, generator=generator)
    center = torch.randn(7, generator=generator)
    terms = []
    for t in range(2):
        for s in range(4):
            if s == t:
                continue
            for b in range(3):
                p = torch.softmax((teacher[t * 3 + b] - center) / 0.04, 0)
                q = torch.log_softmax(student[s * 3 + b] / 0.1, 0)
                entropy = -(p * p.clamp(min=1e-30).log()).sum()
                terms.append(kl_div(q, p, reduction="sum") + entropy)  # KL + H(p) is the cross entropy
    assert dino_loss(student, teacher, center, 4, 2, 0.1, 0.04).item() == pytest.approx(
        torch.stack(terms).mean().item(), rel=1e-4
    )


def test_center_moves_by_the_mean_and_never_to_nan():
    rows = torch.randn(6, 5)
    assert torch.allclose(update_center(torch.ones(5), rows.sum(0), 6, 0.9), 0.9 + 0.1 * rows.mean(0))
    rows[2, 1] = torch.nan
    assert torch.equal(update_center(torch.ones(5), rows.sum(0), 6, 0.9), torch.ones(5))


def test_batch_norm_is_torchs():
    x = torch.randn(20, 6)
    theirs = torch.nn.BatchNorm1d(6)
    assert torch.allclose(BatchNorm(6)(x), theirs(x), atol=1e-6)
    assert [type(layer).__name__ for layer in mlp([4, 8, 2], batch_norm=True)] == [
        "Linear",
        "BatchNorm",
        "ReLU",
        "Linear",
        "BatchNorm",
    ]
    assert mlp([4, 8, 2], batch_norm=True)[-1].weight is None


def test_moving_average():
    networks = [torch.nn.Linear(3, 2)]
    copies = momentum_copy(networks)
    before = copies[0].weight.clone()
    with torch.no_grad():
        networks[0].weight.add_(1.0)
    ema_update(copies, networks, 0.75)
    assert torch.allclose(copies[0].weight, before + 0.25)
    assert not any(p.requires_grad for p in copies.parameters())
    assert [cosine_momentum(0.9, p) for p in (0, 0.5, 1)] == pytest.approx([0.9, 0.95, 1.0])


def test_moving_average_of_a_network_with_batch_normalisation():
    """The scale is averaged; running statistics and their counter are copied: by hand, means 2 and 4, variances 8."""
    networks = [torch.nn.BatchNorm1d(2)]
    copies = momentum_copy(networks)
    networks[0](torch.tensor([[0.0, 2.0], [4.0, 6.0]]))
    with torch.no_grad():
        networks[0].weight.add_(1.0)
    ema_update(copies, networks, 0.75)
    (kept,) = copies
    assert torch.allclose(kept.running_mean, torch.tensor([0.2, 0.4]))
    assert torch.allclose(kept.running_var, torch.tensor([1.7, 1.7]))
    assert (kept.num_batches_tracked.item(), kept.num_batches_tracked.dtype) == (1, torch.int64)
    assert torch.allclose(kept(torch.ones(1, 2)), 1.25 * torch.tensor([[0.8, 0.6]]) / 1.7**0.5, atol=1e-5)
    networks[0](torch.randn(4, 2))
    assert torch.allclose(kept.running_mean, torch.tensor([0.2, 0.4]))  # it is no view of the network's


def test_moving_average_of_a_network_that_keeps_attention_biases():
    """LeViT's attention in evaluation mode looks them up once."""
    network = Attention(8, 4, num_heads=2, resolution=2)
    copies = momentum_copy([network])
    (kept,) = copies
    for _ in range(2):
        kept.get_attention_biases(torch.device("cpu"))
        with torch.no_grad():
            network.attention_biases.add_(torch.randn_like(network.attention_biases))
        ema_update(copies, [network], 0.0)
        wanted = network.attention_biases[:, network.attention_bias_idxs]
        assert torch.allclose(kept.get_attention_biases(torch.device("cpu")), wanted)
        assert not kept.training


def tiny(kind, *args, **options):
    torch.manual_seed(0)
    return kind(create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), *args, **options)


def tiny_method(name):
    torch.manual_seed(0)
    return create_method(
        name,
        create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT),
        torch.arange(64) // 16,
        [2],
        tiny_options(name),
    ).train()


def batch(images=4, crops=2):
    pixels = torch.randint(
        0, 256, (images * crops, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    idx = torch.arange(images).repeat(crops)
    return [pixels], [idx], [idx], [torch.ones(images * crops)]


def test_simclr_of_six_crops_counts_them_all_as_positives():
    model = tiny(SimCLR, **TINY_METHODS["simclr"]).eval()
    images, a, b, lam = batch(4, 6)
    z = normalize(model.head(model.backbone(model.normalize(images[0]))), dim=1).detach().double()
    assert model(images, a, b, lam).item() == pytest.approx(direct(z, a[0].tolist(), 0.5), rel=1e-4)
    halves = [images[0][:8], images[0][8:]], [a[0][:8], a[0][8:]]
    assert model(halves[0], halves[1], halves[1], [lam[0][:8], lam[0][8:]]).item() == pytest.approx(
        model(images, a, b, lam).item(), rel=1e-5
    )


def test_moco_v2_takes_negatives_from_the_queue_but_not_its_own_older_keys():
    model = tiny(MoCoV2, 12, **TINY_METHODS["moco_v2"])
    first = model.queue.clone()
    images, a, b, lam = batch(4)
    with torch.no_grad():
        q = normalize(model.head(model.backbone(model.normalize(images[0][:4]))), dim=1)
        k = normalize(model.head(model.backbone(model.normalize(images[0][4:]))), dim=1)
    wanted = cross_entropy(
        torch.cat([(q * k).sum(1, keepdim=True), q @ first.T], 1) / 0.2, torch.zeros(4, dtype=torch.int64)
    )
    assert torch.isclose(model(images, a, b, lam), wanted, atol=1e-5)
    assert torch.equal(model.queue, first)
    model.after_step(0.0)
    assert torch.allclose(model.queue[:4], k, atol=1e-6)  # the oldest four are gone
    assert torch.equal(model.queue[4:], first[4:])
    assert model.queue_ids[:4].tolist() == [0, 1, 2, 3]
    negatives = torch.cat([(q * k).sum(1, keepdim=True), q @ model.queue.T], 1) / 0.2
    negatives[torch.arange(4), 1 + torch.arange(4)] = -torch.inf  # the key of the same image, a step ago
    assert torch.isclose(
        model(images, a, b, lam), cross_entropy(negatives, torch.zeros(4, dtype=torch.int64)), atol=1e-5
    )
    for _ in range(3):
        model(images, a, b, lam)
        model.after_step(0.0)
    assert model.queue_ptr.item() == 4  # 16 keys in a ring of 12


def test_moco_queue_keeps_out_what_is_not_finite():
    model = tiny(MoCoV2, 12, **TINY_METHODS["moco_v2"])
    before = model.queue.clone()
    model._enqueue(torch.full((4, 8), torch.nan), torch.arange(4))
    assert torch.equal(model.queue, before)
    assert (model.queue_ids == -1).all()


def test_moco_v3_is_symmetric_and_does_not_train_its_patch_embedding():
    model = tiny(MoCoV3, **TINY_METHODS["moco_v3"])
    images, a, b, lam = batch(6)
    with torch.no_grad():
        x = model.normalize(images[0])
        k = normalize(model.head["projector"](model.backbone(x)), dim=1)
        q = normalize(model.head["predictor"](model.head["projector"](model.backbone(x))), dim=1)
        target = torch.arange(6)
        wanted = 2 * 0.2 * (cross_entropy(q[:6] @ k[6:].T / 0.2, target) + cross_entropy(q[6:] @ k[:6].T / 0.2, target))
    assert torch.isclose(model(images, a, b, lam), wanted, atol=1e-4)
    assert not any(p.requires_grad for p in model.backbone.patch_embed.parameters())


def test_dino_shows_the_teacher_the_global_crops_only():
    model = tiny(DINO, [2, 2], **TINY_METHODS["dino"])
    images, a, _, _ = batch(4, 4)
    global_crops, local_crops = images[0][:8], images[0][8:]
    with torch.no_grad():
        student = model.head(model.backbone(model.normalize(images[0])))
    wanted = dino_loss(student, student[:8], torch.zeros(32), 4, 2)
    assert torch.isclose(model([global_crops, local_crops], [a[0][:8], a[0][8:]], None, None), wanted, atol=1e-5)
    model.after_step(0.0)
    assert torch.allclose(model.center, 0.1 * student[:8].mean(0), atol=1e-6)
    assert model.encoder is model.teacher[0]
    assert not model.teacher.training
    model([global_crops, local_crops], [a[0][:8], a[0][8:]], None, None).backward()
    model.after_backward(0)
    assert model.head.last.weight.grad is None


@pytest.mark.integration
@pytest.mark.parametrize("name", ["instance", *OTHERS])
def test_every_method_trains_and_resumes_to_the_last_bit(tiny_beton, tmp_path, name):
    whole = pretrain(tiny_config(tiny_beton, tmp_path / "whole", **method_values(name)))
    curve = read_losses(whole)
    assert len(curve) == 12
    assert np.isfinite(curve).all()
    for path in checkpoint.listing(whole / "checkpoints")[-1:]:
        path.unlink()
    (whole / "backbone.safetensors").rename(whole / "first.safetensors")
    pretrain(tiny_config(tiny_beton, whole, **method_values(name), training__resume="auto"))
    assert np.array_equal(read_losses(whole), curve)
    backbone = create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT)
    assert load_backbone(backbone, whole / "first.safetensors")
    first = {k: v.clone() for k, v in backbone.state_dict().items()}
    load_backbone(backbone, whole)
    assert all(torch.equal(first[k], v) for k, v in backbone.state_dict().items())


def trained(name, beton, labels, lr=2e-3, **options):
    """A method trained for 200 steps on the same two crops of 32 images.

    Returns (the method, these crops, the images' numbers, the projections of the crops before and after).
    """
    torch.manual_seed(0)
    loader = MultiCropLoader(
        beton, 32, 1, 0, 0.0, [Views(2, 32, (0.3, 1.0))], Augment(jitter_prob=0, grayscale_prob=0, blur_prob=0)
    )
    (group,) = next(iter(loader))
    model = create_method(
        name, create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), labels, [2], TINY_METHODS[name] | options
    ).train()
    networks = [model.backbone, model.head["projector"] if name == "moco_v3" else model.head]
    with torch.no_grad():
        before = model.project(networks, [group.images])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(200):
        loss = model([group.images], [group.idx_a], None, None)
        optimizer.zero_grad()
        loss.backward()
        model.after_backward(1)
        optimizer.step()
        model.after_step(step / 200)
    with torch.no_grad():
        return model, group.images, group.idx_a[:32], before, model.project(networks, [group.images])


@pytest.mark.integration
@pytest.mark.parametrize("name", ["simclr", "supcon", "moco_v2", "moco_v3"])
def test_contrastive_methods_learn_to_find_an_image_by_another_crop_of_it(raw_beton, name):
    """The second crop nearest to each first one is of the same image; for SupCon of the same class.

    Its classes are pairs of images that have nothing in common.
    """
    labels = torch.arange(64) // 2 if name == "supcon" else torch.zeros(64, dtype=torch.int64)
    more = {"supcon": {"temperature": 0.1}, "moco_v3": {"lr": 1e-3, "momentum": 0.9, "hidden": 64, "dim": 16}}
    _, _, idx, before, after = trained(name, raw_beton, labels, **more.get(name, {}))
    ids = labels[idx] if name == "supcon" else idx
    found = []
    for z in (before, after):
        first, second = normalize(z, dim=1).chunk(2)
        nearest = (first @ second.T).argsort(1, descending=True)[:, : 2 if name == "supcon" else 1]
        found.append((ids[nearest] == ids[:, None]).float().mean().item())
    assert found[1] > found[0] + 0.2


@pytest.mark.integration
def test_dino_learns_without_collapsing(raw_beton):
    """Both crops of an image come to the same output, sharply; and not all images to the same one."""
    model, images, _, _, _ = trained("dino", raw_beton, torch.zeros(64, dtype=torch.int64))
    with torch.no_grad():
        p = ((model.project(model.teacher, [images]) - model.center) / 0.04).softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    assert (p[:32].argmax(1) == p[32:].argmax(1)).float().mean() > 0.7
    assert entropy < 0.5 * np.log(32)
    assert torch.special.entr(p.mean(0)).sum() > entropy + 0.3


@pytest.mark.integration
@pytest.mark.parametrize("name", OTHERS)
def test_low_precision_follows_the_full_one(tiny_beton, tmp_path, name):
    full, low = (
        read_losses(
            pretrain(
                tiny_config(
                    tiny_beton, tmp_path / amp, **method_values(name, **{"training.epochs": 2}), training__amp=amp
                )
            )
        )
        for amp in ("fp32", "bf16")
    )
    assert np.abs(low / full - 1)[:3].max() < 0.03  # later on they go their own ways
    assert not np.array_equal(low, full)


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", OTHERS)
def test_compiled_follows_eager(tiny_beton, tmp_path, name):
    torch._dynamo.reset()
    eager, compiled = (
        read_losses(
            pretrain(
                tiny_config(
                    tiny_beton, tmp_path / str(c), **method_values(name, **{"training.epochs": 2}), training__compile=c
                )
            )
        )
        for c in (False, True)
    )
    assert np.abs(compiled / eager - 1)[:5].max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_compiled_gradients_are_those_of_eager_mode(name):
    """Whatever the method remembers from step to step (queue, center, teacher)."""
    torch._dynamo.reset()
    gradients = []
    for compiled in (False, True):
        model = tiny_method(name)
        call = torch.compile(model, dynamic=False) if compiled else model
        for step in range(3):
            images, idx, _, lam = batch(8)
            model.zero_grad()
            call([images[0].roll(step, 0)], [(idx[0] + 8 * step) % 64], idx, lam).backward()
            model.after_backward(1)
            model.after_step(step / 3)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[1] - gradients[0]).norm() < 1e-4 * gradients[0].norm()


@pytest.mark.integration
def test_two_processes_see_what_one_sees(tiny_beton, tmp_path):
    """The curve is that of one process, for all methods.

    So negatives, queue, center and batch statistics are gathered, uneven last batches too.
    """
    cases = {name: method_values(name, **{"training.batch_size": 36, "training.epochs": 3}) for name in OTHERS}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "both.py").write_text(f"""
import json, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers import tiny_config
from idmm_fast.runtime import distributed
from idmm_fast.train.pretraining import pretrain
with distributed.process_group("cpu"):
    for name, options in json.load(open({str(tmp_path / "cases.json")!r})).items():
        pretrain(tiny_config({str(tiny_beton)!r}, {str(tmp_path)!r} + "/both_" + name, **options))
""")
    both = start_ranks(2, tmp_path / "both.py")
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for name, case in cases.items():
        alone = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / f"alone_{name}", **case)))
        both = read_losses(tmp_path / f"both_{name}")
        assert len(both) == 6
        assert np.abs(both / alone - 1).max() < 1e-3, name


def test_weight_decay_follows_its_schedule_and_spares_vectors(tiny_beton, tmp_path):
    from idmm_fast.train.optim import cosine, make_optimizers

    model = tiny(SimCLR, **TINY_METHODS["simclr"])
    cfg = tiny_config(tiny_beton, tmp_path, training__decay_norm_bias=False)
    (optimizer,) = make_optimizers(model, cfg.training)
    groups = optimizer.param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert all((p.dim() > 1) == bool(g["decays"]) for g in groups for p in g["params"])
    assert [cosine(s, 10, 0.04, 0.4) for s in (0, 5, 10)] == pytest.approx([0.04, 0.22, 0.4])


def test_gradients_are_clipped(tiny_beton, tmp_path):
    """With a norm that nothing exceeds the curve is as without; with a tiny one it is another."""
    curves = [
        read_losses(
            pretrain(
                tiny_config(tiny_beton, tmp_path / str(clip), **method_values("simclr", **{"training.clip_grad": clip}))
            )
        )
        for clip in (0.0, 1e6, 1e-4)
    ]
    assert np.array_equal(curves[0], curves[1])
    assert not np.array_equal(curves[0], curves[2])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method.name": "simclr"}, "can't use mixed images.*cutmix.alpha must be 0"),
        (
            {"method.name": "simclr", "cutmix.alpha": 0, "method.options": {"temprature": 1}},
            "simclr has no 'temprature'; it has temperature, hidden, dim",
        ),
        ({"method.name": "moco_v2", "cutmix.alpha": 0}, "moco_v2 needs one group of 2 crops"),
        (
            {"method.name": "dino", "cutmix.alpha": 0, "crops.groups": [{"count": 1, "scale": [0.1, 1.0]}]},
            "at least 2 crops",
        ),
        ({"method.options": {"dim": 3}}, "idmm has its keys"),
        (
            {"method.name": "simclr", "cutmix.alpha": 0, "method.options": {"hidden": "abc"}},
            r"method\.options: hidden of simclr is a number, not 'abc'",
        ),
        (
            {"method.name": "simclr", "cutmix.alpha": 0, "method.options": {"hidden": -5}},
            r"method\.options {'hidden': -5} do not go with simclr: ",
        ),
        ({"method.name": "byol"}, "one of idmm, simclr"),
    ],
)
def test_what_does_not_fit_is_said(tiny_beton, tmp_path, changes, says):
    with pytest.raises((ConfigError, ValueError), match=says):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", **{k.replace(".", "__"): v for k, v in changes.items()}))


@pytest.mark.parametrize(("label", "says"), [(-1, "needs labels"), (0, "two classes at least, and data.train has one")])
def test_supcon_wants_labels_of_several_classes(label, says):
    with pytest.raises(ValueError, match=says):
        create_method(
            "supcon", create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), torch.full((4,), label), [2], {}
        )


@pytest.mark.parametrize("path", sorted((ROOT / "rn_configs" / "methods").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_methods_files_say_what_their_method_does_by_itself(path):
    values = load_yaml(SCHEMA, path)
    cfg = make_config(SCHEMA, {"data.train": "x", "model.name": "x", "logging.run_dir": "x", **values})
    assert cfg.method.name in ("idmm", path.stem)
    assert cfg.method.options.items() <= options_of(cfg.method.name).items()
    assert flatten(SCHEMA, {"method": {"name": "idmm"}}, "here") == {"method.name": "idmm"}
