"""Training, losses and GPU augmentation on a CUDA device that is not there: no waiting host, no tensor left behind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, HostSync, backward, fake_cuda, to_fake
from helpers import FINETUNE, TINY_VIT, method_values, tiny_config

from idmm_fast.loader import Views
from idmm_fast.loader.crops import Group
from idmm_fast.loader.gpu import DeviceLoader
from idmm_fast.losses import ShardedHead, fused_instance_loss, instance_loss
from idmm_fast.methods import IDMM, METHODS
from idmm_fast.models import create_backbone
from idmm_fast.runtime.device import Runtime, prefetch_to_device
from idmm_fast.train.finetuning import Finetuning
from idmm_fast.train.pretraining import Pretraining
from idmm_fast.train.trainer import Trainer

LOW = torch.bfloat16
SMALL = {"model__options": TINY_VIT | {"depth": 1}, "training__device": "cpu"}


def pinned_batch(loader):
    """A batch as the loader hands it out where there is a CUDA device: pixels in pinned memory."""
    groups = []
    for view in loader.views:
        rows, size = view.count * loader.batch_size, view.size
        pixels = torch.empty(rows, size, size, 3, dtype=torch.uint8, pin_memory=True)
        idx = torch.zeros(rows, dtype=torch.int64)
        groups.append(Group(pixels.permute(0, 3, 1, 2), idx, idx, torch.ones(rows)))
    return groups


def train_steps(task, amp, epochs=(0, 0)):
    """The trainer, after a step in each of these epochs on the fake device."""
    task.runtime = Runtime(DEVICE, amp, channels_last=True, compile=False)
    task.prepared = task.runtime.prepare(to_fake(task.model))
    if hasattr(task, "labels"):
        task.labels = to_fake(task.labels)
    if task.average is not None:
        to_fake(task.average)
    trainer = Trainer(task, SimpleNamespace(state=None, log=lambda **values: None))
    batches = (pinned_batch(task.loader) for _ in epochs)
    for epoch, groups in zip(epochs, prefetch_to_device(batches, DEVICE)):
        trainer._train_step(groups, epoch)
    trainer.throughput.close()
    return trainer


CASES = [
    *((name, LOW, {}) for name in METHODS),
    ("idmm", None, {"head__loss": "fused"}),
    ("idmm", torch.float16, {"training__optimizer": "muon"}),
    ("dino", torch.float16, {"training__clip_grad": 0.3}),
]


@pytest.mark.parametrize(("name", "amp", "values"), CASES)
def test_a_step_of_a_method_waits_for_nothing(tiny_beton, tmp_path, monkeypatch, name, amp, values):
    """Forward and backward pass, optimiser, moving averages, the loss that is logged a step later."""
    method = method_values(name) if name != "idmm" else {}
    task = Pretraining(tiny_config(tiny_beton, tmp_path, **{**method, **SMALL, **values}))
    with fake_cuda(monkeypatch) as device:
        trainer = train_steps(task, amp)
    assert trainer.step == 2
    assert device.launches > 200
    assert all(p.is_cuda for p in task.model.parameters())


def test_a_step_of_two_batches_waits_for_nothing(tiny_beton, tmp_path, monkeypatch):
    values = {**SMALL, "training__accumulate": 2, "training__clip_grad": 0.3}
    task = Pretraining(tiny_config(tiny_beton, tmp_path, **values))
    with fake_cuda(monkeypatch):
        assert train_steps(task, torch.float16, epochs=(0, 0, 0, 0)).step == 2


@pytest.mark.parametrize("values", [{}, {"training__ema": 0.99, "training__layer_decay": 0.7}])
def test_a_step_of_fine_tuning_waits_for_nothing(tiny_beton, tmp_path, monkeypatch, values):
    """With mixup in epoch 0 and CutMix in epoch 1."""
    task = Finetuning(tiny_config(tiny_beton, tmp_path, FINETUNE, **SMALL, **values))
    with fake_cuda(monkeypatch) as device:
        assert train_steps(task, LOW, epochs=(0, 1)).step == 2
    assert device.launches > 200


def head_case(rows, classes, d):
    """(features, weight, bias, idx, lam) on the fake device."""
    z, weight = (torch.zeros(n, d, device=DEVICE, requires_grad=True) for n in (rows, classes))
    bias, idx = torch.zeros(classes, device=DEVICE, requires_grad=True), torch.zeros(rows, dtype=int, device=DEVICE)
    return z, weight, bias, idx, torch.ones(rows, device=DEVICE)


def test_losses_wait_for_nothing(monkeypatch):
    head = ShardedHead(16, 3000)
    with fake_cuda(monkeypatch) as device, torch.autocast("cuda", LOW):
        z, weight, bias, idx, lam = head_case(64, 3000, 16)
        for share in (lam, 0.5):
            instance_loss(z @ weight.T + bias, idx, idx, share, 0.1).backward()
            fused_instance_loss(z, weight, bias, idx, idx, share, 0.1).backward()
        to_fake(head).loss(z, idx, idx, lam, 0.1).backward()
        before = device.launches
        instance_loss(torch.zeros(64, 100_000, device=DEVICE), idx, idx, lam, 0.1)
    assert device.launches - before < 60


def test_the_fused_loss_over_imagenet_takes_few_launches(monkeypatch):
    """1,536 crops among 1,281,167 images in the default workspace: 1,800; in tiles of a CPU's size it is 150,000."""
    with fake_cuda(monkeypatch) as device, torch.autocast("cuda", LOW):
        z, weight, bias, idx, lam = head_case(1536, 1_281_167, 192)
        fused_instance_loss(z, weight, bias, idx, idx, lam, 0.1).backward()
    assert device.launches < 2000


def test_gpu_augmentation_sends_one_copy_a_batch(raw_beton, monkeypatch):
    loader = DeviceLoader(raw_beton, 16, 1, views=[Views(2, 32), Views(1, 24)], device="cpu")
    wanted = [(group.images.shape, group.images.stride()) for group in next(iter(loader))]
    rows = np.arange(16)
    with fake_cuda(monkeypatch) as device:
        loader.device, loader.images = DEVICE, to_fake(loader.images)
        groups = loader.make_batch(rows, 0, 0)
        assert device.copies == 1
        ((images, *targets), _) = next(prefetch_to_device([groups], DEVICE))
        assert device.copies == 1
        assert [(group.images.shape, group.images.stride()) for group in groups] == wanted
        assert all(t.is_cuda for t in (images, *targets))


# --- what must be noticed


def _pageable():
    return torch.zeros(100_000)


SYNCS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked assignment": lambda x: x.index_put_((x > 0,), x.sum()),
    "index on the CPU": lambda x: x[torch.zeros(2, dtype=int)],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "tensor": lambda x: torch.tensor(1.0, device=DEVICE),
    "blocking": lambda x: _pageable().pin_memory().to(DEVICE),
    "pageable": lambda x: _pageable().to(DEVICE, non_blocking=True),
    "pageable target": lambda x: _pageable().copy_(x.sum(), non_blocking=True),
    "event": lambda x: torch.cuda.current_stream().record_event().synchronize(),
    "stream": lambda x: torch.cuda.current_stream().synchronize(),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("name", SYNCS)
def test_a_host_that_waits_is_noticed(monkeypatch, name):
    with fake_cuda(monkeypatch), pytest.raises(HostSync):
        SYNCS[name](torch.zeros(8, device=DEVICE))


def test_what_waits_for_nothing_passes(monkeypatch):
    with fake_cuda(monkeypatch):
        x = _pageable().pin_memory().to(DEVICE, non_blocking=True)
        x += torch.zeros(8).to(DEVICE, non_blocking=True).sum() + torch.full((), 2.0, device=DEVICE)
        arrived = x.to("cpu", non_blocking=True)
        event = torch.cuda.current_stream().record_event()
        for _ in range(100):
            x = x + 1
        event.synchronize()
        arrived.sum().item()


@pytest.mark.parametrize("kind", ["sync", "tensor"])
def test_a_fault_in_a_method_is_noticed(tiny_beton, tmp_path, monkeypatch, kind):
    """A step that looks at its loss, and one with a tensor that stayed on the CPU."""

    def look(self, *args):
        return self.head.weight.sum().item() if kind == "sync" else self.head.weight + torch.zeros(1, 1)

    monkeypatch.setattr(IDMM, "after_step", look)
    task = Pretraining(tiny_config(tiny_beton, tmp_path, **SMALL))
    with (
        fake_cuda(monkeypatch),
        pytest.raises(HostSync if kind == "sync" else RuntimeError, match=r"device|item|scalar"),
    ):
        train_steps(task, None)


def test_gradients_by_the_graphs_nodes_are_torchs(monkeypatch):
    """`backward` replaces torch's engine, which asks the driver for streams; here on numbers, on the CPU."""
    torch.manual_seed(0)
    model = IDMM(create_backbone("vit_tiny_patch16_224", 32, 0.0, TINY_VIT), 20)
    images = [torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)]
    idx = [torch.arange(8)]

    def gradients(run):
        model.zero_grad()
        run(model(images, idx, [idx[0].flip(0)], [torch.full((8,), 0.3)]))
        return [p.grad.clone() for p in model.parameters()]

    for ours, theirs in zip(gradients(backward), gradients(torch.Tensor.backward)):
        torch.testing.assert_close(ours, theirs)
