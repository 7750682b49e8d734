"""The systems of the step's benchmark, from the reference implementation to ours, and the batches they are given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import log_softmax

from ..methods import IDMM
from ..models import create_backbone
from ..models.cpu import choose_layers
from ..models.normalize import PRETRAIN_STD
from ..runtime.device import Runtime, choose_attention

REFERENCE = "published"  # the key of its figures
Batch = list[list[torch.Tensor]]  # [images, idx_a, idx_b, lam], each with a tensor per multi-crop group


@dataclass(frozen=True)
class StepSetting:
    """What is trained.

    Args:
        model: timm's name.
        size: Height and width of a crop, in pixels.
        batch: Images a step, six crops each.
        instances: Classes of the head.
        options: Further arguments of the model.
    """

    model: str
    size: int
    batch: int
    instances: int = 2040
    options: dict[str, Any] = field(default_factory=dict)


def make_batch(images: int, instances: int, size: int, device: torch.device, seed: int = 0) -> Batch:
    """A batch of random pixels: a group of 2 and one of 4 crops of each of `images` images.

    Args:
        images: Images of the batch.
        instances: How many instances the indices name at most.
        size: Height and width of a crop, in pixels.
        device: Where it lies.
        seed: Of pixels and partners.

    Returns:
        Lists of the groups' images, uint8 (crops, 3, size, size); idx_a, idx_b, int64 (crops,); lam, float32 (crops,).
    """
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for crops in (2, 4):
        rows = crops * images
        pixels = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=generator)
        a = torch.arange(images).repeat(crops) % instances
        b = a[torch.randperm(rows, generator=generator)]
        lam = torch.full((rows,), 0.9)
        groups.append([t.to(device) for t in (pixels.contiguous(memory_format=torch.channels_last), a, b, lam)])
    return [list(part) for part in zip(*groups)]


class ReferenceStep(torch.nn.Module):
    """The step of the reference implementation: normalised pixels, group by group, cross entropy with dense targets.

    Args:
        model: IDMM, whose backbone and head are used.
        instances: N.
        label_smoothing: 0 to 1.
        use_indices: Take the loss from the indices, not from dense targets.
    """

    def __init__(
        self, model: torch.nn.Module, instances: int, label_smoothing: float = 0.1, use_indices: bool = False
    ) -> None:
        super().__init__()
        self.model: Any
        self.model, self.instances = model, instances
        self.label_smoothing, self.use_indices = label_smoothing, use_indices
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PRETRAIN_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: list, idx_a: list, idx_b: list, lam: list) -> torch.Tensor:
        """The loss of a batch, float32 ()."""
        if self.use_indices:
            return sum(self.model(*([part] for part in group)) for group in zip(images, idx_a, idx_b, lam))
        loss, on = torch.zeros((), device=images[0].device), 1 - self.label_smoothing
        for x, a, b, group_lam in zip(images, idx_a, idx_b, lam):
            x = (x.float().contiguous() / 255 - self.mean) / self.std
            logits = self.model.head(self.model.backbone(x))
            target = torch.full_like(logits, self.label_smoothing / self.instances)
            target.scatter_add_(1, a[:, None], (on * group_lam)[:, None])
            target.scatter_add_(1, b[:, None], (on * (1 - group_lam))[:, None])
            loss = loss - (target * log_softmax(logits, 1)).sum(1).mean()
        return loss


@dataclass(frozen=True)
class StepSystem:
    """A row of the benchmark: the module to call, the model whose parameters it trains, and how it runs."""

    module: torch.nn.Module
    model: torch.nn.Module
    runtime: Runtime

    @property
    def precision(self) -> str:
        """Of the products, e.g. "float32"."""
        return dtype_name(self.runtime.amp or torch.float32)


def make_systems(setting: StepSetting, device: torch.device, low: torch.dtype | None) -> dict[str, StepSystem]:
    """All rows, each switch on top of those before it.

    Args:
        setting: What is trained.
        device: Where.
        low: The lower precision; None for none.
    """
    plain, last = Runtime(device, None, False, False), Runtime(device, None, True, False)
    found = {}

    def add(what: str, runtime: Runtime, wrap: Callable | None = None, *choices: Callable) -> None:
        torch.manual_seed(0)
        backbone = create_backbone(setting.model, setting.size, 0.1, setting.options or None)
        model = runtime.to_device(IDMM(backbone, setting.instances, 0.1)).train()
        for choose in choices:
            choose(model, runtime)
        found[what] = StepSystem(runtime.prepare(wrap(model).to(device) if wrap else model), model, runtime)

    add(REFERENCE, plain, lambda model: ReferenceStep(model, setting.instances))
    add("+ index loss", plain, lambda model: ReferenceStep(model, setting.instances, use_indices=True))
    add("+ one pass", plain)
    add("+ channels-last", last)
    if low is not None:
        add(f"+ {'bf16' if low == torch.bfloat16 else 'fp16'}", Runtime(device, low, True, False))
    if device.type == "cpu":
        add("+ plain attention", Runtime(device, low, True, False), None, choose_attention)
        if low is not None:
            add("+ patches multiplied", Runtime(device, low, True, False), None, choose_attention, choose_layers)
    add("+ compile", Runtime(device, low, True, True), None, choose_attention, choose_layers)
    return found


def make_step(
    module: torch.nn.Module, model: torch.nn.Module, runtime: Runtime, fused: bool = True
) -> Callable[[Batch], None]:
    """A function that takes a training step with AdamW.

    Args:
        module: Computes the loss of a batch.
        model: Whose parameters are trained.
        runtime: Precision and device.
        fused: Use AdamW's fused kernel.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-3, fused=fused or None)
    scaler = runtime.scaler()

    def step(batch: Batch) -> None:
        with runtime.autocast():
            loss = module(*batch)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def dtype_name(dtype: torch.dtype) -> str:
    """E.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")
