"""Pretraining, by IDMM or another method."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from ..beton import open_beton
from ..config import ConfigError, replace
from ..config.pretrain import SCHEMA, check
from ..evaluate.unlabelled import unlabelled_metrics
from ..loader import MultiCropLoader, open_cache
from ..methods import IDMM, METHODS, DenseLoss, create_method
from ..methods.base import Method
from ..models import Normalize, create_backbone, load_backbone, resolve_normalization, save_backbone
from ..runtime import distributed
from ..runtime.device import Runtime, allow_graphs, resolve_runtime
from .batch_size import DEFAULT_BATCH_SIZE, fix_batch_size
from .crop_groups import check_spread, crop_sizes, crop_views, describe_sizes, graphs, size_schedule, sizes_by_epoch
from .run_dir import RunDir
from .task import Groups, Task, check_warmup, loader_args, make_augment, train
from .time_budget import steps_ahead

if TYPE_CHECKING:
    from ..evaluate.online import OnlineEvaluation


def pretrain(cfg: SimpleNamespace, online_evaluation: OnlineEvaluation | None = None) -> Path:
    """Pretrain on images alone.

    Args:
        cfg: a configuration of config.pretrain.SCHEMA.
        online_evaluation: gives numbers to log, {name: percent}, when called with (backbone, runtime), every
            online_eval.every epochs; its check() raises before training what it would raise then. See
            evaluate.online.OnlineEvaluation. None: no evaluation.

    Returns:
        pathlib.Path: the run folder, which holds backbone.safetensors at the end.

    Raises:
        ConfigError, BetonError, LoaderError, ValueError, OSError, MemoryError: see their sentences.
        Interrupted: after a signal; a checkpoint is written, if the step could be finished.
        FloatingPointError: the loss or weights are not finite.
    """
    return train(functools.partial(Pretraining, online_evaluation=online_evaluation), cfg)


class Pretraining(Task):
    """Pretraining as a task of the trainer; see `pretrain`."""

    title = "pretrain"
    model: Method

    def __init__(self, cfg: SimpleNamespace, online_evaluation: OnlineEvaluation | None = None) -> None:
        check(cfg)
        beton = open_beton(cfg.data.train)
        cfg = replace(SCHEMA, cfg, resolve_normalization(cfg.model))
        labels = torch.from_numpy(beton.label)
        self.betons, self.online_evaluation = {"train": beton}, online_evaluation
        self.cfg = cfg = fix_batch_size(SCHEMA, cfg, lambda: _dry_run(cfg, labels), cfg.cutmix.chunk_size or 1)
        check_warmup(cfg)
        torch.manual_seed(cfg.training.seed)
        self.runtime = _resolve_runtime(cfg, len(beton))
        self.model = _make_model(cfg, labels, self.runtime)
        self.loader = make_loader(cfg, self.runtime)
        check_spread(cfg, self.loader)
        if online_evaluation is not None and cfg.online_eval.every:
            online_evaluation.cfg = cfg
            distributed.broadcast_from_main(online_evaluation.check)  # the only process that will evaluate
            if cfg.data.test is not None:
                self.evaluated_images = len(beton) + len(open_beton(cfg.data.test))
        crops = sum(v.count for v in self.loader.views)
        sizes, cache, decoder = describe_sizes(cfg), self.loader.cache, self.loader.decoder
        self.description = (
            f"{cfg.model.name} at {cfg.model.image_size}{_origin(cfg)}, {len(self.loader.indices)} images, "
            f"{crops} crop{'s' * (crops != 1)} each; {_describe(cfg, self.model, len(beton))}"
            + "".join(f"; {part}" for part in (sizes, cache.description, decoder.description) if part)
        )

    def loss(self, groups: Groups, epoch: int, step: int) -> torch.Tensor:
        """The loss of the method; see Task.loss."""
        return self.model_for(step)(*map(list, zip(*groups)), self.loader.loss_weight(step))

    def step_cost(self) -> tuple[Callable[[int], torch.Tensor], int]:
        """See Task.step_cost."""
        return _step_cost(self.model, self.cfg, self.runtime)

    def after_backward(self, epoch: int) -> None:
        """What the method does with its gradients."""
        self.model.after_backward(epoch)

    def after_step(self, step: int, progress: float) -> None:
        """What the method does after a step, such as moving its averaged network."""
        self.model.after_step(progress)

    def evaluate(self, epoch: int, last: bool) -> dict[str, float] | None:
        """The online evaluations that are due: each every so many epochs, and after the last one."""
        cfg = self.cfg
        found: dict[str, float] = {}

        def is_due(every: int) -> bool:
            return every > 0 and (last or (epoch + 1) % every == 0)

        if self.online_evaluation is not None and is_due(cfg.online_eval.every):
            found |= distributed.broadcast_from_main(
                lambda: self.online_evaluation(self.model.encoder, self.runtime)  # type: ignore[misc]
            )
        if is_due(cfg.online_eval.unlabelled_every):
            network = nn.Sequential(self.model.normalize, self.model.encoder)
            look = functools.partial(
                unlabelled_metrics, network, cfg.data.train, cfg.model.image_size, self.runtime, cfg.data.num_workers
            )
            found |= distributed.broadcast_from_main(look)
        if not found:
            return None
        self.model.train()
        if distributed.rank() == 0:
            unit = {"rankme": ""}
            said = "  ".join(f"{name} {value:.2f}{unit.get(name, ' %')}" for name, value in found.items())
            tqdm.write(f"epoch {epoch + 1}: {said}")
        return found

    def finish(self, run: RunDir) -> Path:
        """Write backbone.safetensors; return the run folder."""
        if run.is_main and not self.cfg.training.max_steps:
            save_backbone(self.model.encoder, run.folder / "backbone.safetensors")
        return run.folder


def _resolve_runtime(cfg: SimpleNamespace, images: int) -> Runtime:
    """What training runs on; compiling must pay for the graph of each combination of sizes."""
    steps = steps_ahead(cfg.training, -(-images // cfg.training.batch_size))
    runtime = resolve_runtime(cfg.training, steps // len(set(map(tuple, sizes_by_epoch(cfg).values()))))
    if runtime.compile:
        allow_graphs(graphs(cfg))
    return runtime


def make_loader(cfg: SimpleNamespace, runtime: Runtime) -> MultiCropLoader:
    """The loader of the training images.

    Args:
        cfg: a configuration of config.pretrain.SCHEMA.
        runtime: where training runs, and with data.augment_on=device the crops are made.

    Raises:
        ConfigError: cutmix.chunk_size does not divide the images a step of a process.
    """
    args = loader_args(cfg)
    if cfg.cutmix.chunk_size and args["batch_size"] % cfg.cutmix.chunk_size:
        raise ConfigError(
            f"cutmix.chunk_size {cfg.cutmix.chunk_size} does not divide the {args['batch_size']} images a step of a "
            f"process (training.batch_size {cfg.training.batch_size}, processes: {args['world_size']})"
        )
    alpha, first = cfg.cutmix.alpha, cfg.cutmix.from_epoch
    make: Callable[..., MultiCropLoader] = MultiCropLoader
    passes = 2 if cfg.training.minutes else -(-cfg.training.epochs // cfg.crops.spread)
    if cfg.data.augment_on == "device":
        from ..loader.gpu import DeviceLoader

        passes = 0  # it keeps the images itself
        make = functools.partial(DeviceLoader, device=runtime.device, compile=runtime.compile)
    return make(
        cfg.data.train,
        seed=cfg.training.seed,
        cutmix_alpha=(lambda epoch: alpha if epoch >= first else 0.0) if first else alpha,
        views=crop_views(cfg),
        schedule=size_schedule(cfg),
        augment=make_augment(cfg),
        cutmix_chunk=cfg.cutmix.chunk_size,
        cutmix_per_row=cfg.cutmix.per_sample,
        on_error=cfg.data.on_error,
        spread=cfg.crops.spread,
        spread_mb=cfg.crops.spread_mb,
        cache=open_cache(open_beton(cfg.data.train), None, cfg.data.cache, passes),
        **args,
    )


def _make_model(cfg: SimpleNamespace, labels: torch.Tensor, runtime: Runtime) -> Method:
    """The method that `cfg` names, on the device. labels: int64 (images,)."""
    backbone = create_backbone(
        cfg.model.name, cfg.model.image_size, cfg.model.drop_path, cfg.model.options, crop_sizes(cfg)
    )
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init)
    counts = [view.count for view in crop_views(cfg)]
    if cfg.method.name == "idmm":
        model: Method = _make_idmm(cfg, backbone, labels.numel())
    else:
        if cfg.cutmix.alpha > 0 and not METHODS[cfg.method.name].uses_mixed_images:
            raise ConfigError(
                f"{cfg.method.name} can't use mixed images: cutmix.alpha must be 0. "
                f"--config rn_configs/methods/{cfg.method.name}.yaml sets it"
            )
        model = create_method(cfg.method.name, backbone, labels, counts, cfg.method.options)
    model.normalize = Normalize(True, cfg.model.mean, cfg.model.std)
    return runtime.to_device(model).train()


def _make_idmm(cfg: SimpleNamespace, backbone: nn.Module, instances: int) -> IDMM:
    """IDMM with the loss that `cfg` asks for."""
    if cfg.method.options:
        raise ConfigError(
            "method.options is for the other methods; idmm has its keys under head, cutmix and training.label_smoothing"
        )
    if cfg.head.sample_rate < 1 and cfg.head.loss == "dense":
        raise ConfigError("head.loss=dense does not go with head.sample_rate below 1; leave head.loss at auto")
    fused = _dense_mb(cfg, instances) > cfg.head.max_dense_mb if cfg.head.loss == "auto" else cfg.head.loss == "fused"
    fused |= cfg.head.sample_rate < 1
    for key in ("temperature", "sqrt_kl"):
        if fused and getattr(cfg.head, key):
            raise ConfigError(
                f"head.{key} needs all logits of a step, {_dense_mb(cfg, instances):,.0f} MB: take head.loss=dense and "
                f"head.sample_rate=1, or head.{key}=0"
            )
    return IDMM(
        backbone,
        instances,
        cfg.training.label_smoothing,
        fused,
        cfg.head.workspace_mb << 20,
        cfg.head.sample_rate,
        DenseLoss(cfg.head.temperature, cfg.head.sqrt_kl),
    )


def _dense_mb(cfg: SimpleNamespace, instances: int) -> float:
    """What the dense logits of a step of a process take, in MB."""
    crops = sum(view.count for view in crop_views(cfg))
    return cfg.training.batch_size // distributed.world() * crops * instances * 4 / 2**20


def _origin(cfg: SimpleNamespace) -> str:
    """Where the first weights are from, if they are not random."""
    return f" from {cfg.model.init}" if cfg.model.init is not None else ""


def _describe(cfg: SimpleNamespace, model: Method, instances: int) -> str:
    """The method and, of IDMM, its loss."""
    if cfg.method.name != "idmm":
        return cfg.method.name
    rate = cfg.head.sample_rate
    if rate < 1:
        kind = f"fused loss over the batch's images and {rate:.3g} of the others"
    else:
        kind = f"{'fused' if model.fused else 'dense'} loss"
    return f"{kind} (dense logits: {_dense_mb(cfg, instances):,.0f} MB)"


def _step_cost(model: nn.Module, cfg: SimpleNamespace, runtime: Runtime) -> tuple[Callable[[int], torch.Tensor], int]:
    """See Task.step_cost."""
    largest = [max(sizes) for sizes in zip(*sizes_by_epoch(cfg).values())]
    groups = [(view.count, size) for view, size in zip(crop_views(cfg), largest)]

    def loss(n: int) -> torch.Tensor:
        device = runtime.device
        images = [torch.zeros(count * n, 3, size, size, dtype=torch.uint8, device=device) for count, size in groups]
        rows = [torch.zeros(count * n, dtype=torch.int64, device=device) for count, _ in groups]
        return model(images, rows, rows, [torch.ones(count * n, device=device) for count, _ in groups])

    return loss, sum(3 * count * size * size for count, size in groups)


def _dry_run(
    cfg: SimpleNamespace, labels: torch.Tensor
) -> tuple[nn.Module, Runtime, Callable[[int], torch.Tensor], int]:
    """(model, runtime, loss, bytes an image) to find out what a step takes; see batch_size.max_batch_size."""
    cfg = replace(SCHEMA, cfg, {"training.batch_size": DEFAULT_BATCH_SIZE})
    runtime = _resolve_runtime(cfg, labels.numel())
    model = _make_model(cfg, labels, runtime)
    return model, runtime, *_step_cost(model, cfg, runtime)
