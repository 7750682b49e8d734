"""Pretraining, by IDMM or another method."""

import contextlib
import functools

import torch

from ..beton import open_beton
from ..config import ConfigError, changed
from ..config.pretrain import SCHEMA
from ..loader import MultiCropLoader, Views
from ..methods import IDMM, create_method
from ..models import create_backbone, save_backbone
from ..plots.batch import plot_batch
from ..plots.curves import plot_curves
from ..runtime import distributed
from ..runtime.device import choose, choose_attention
from .batch_size import DEFAULT_BATCH_SIZE, fix_batch_size, max_batch_size, oom_hint
from .run_dir import Run
from .task import check_warmup, make_augment, share_of_process
from .trainer import fit


def make_loader(cfg, machine):
    """The loader that a pretraining configuration asks for, on this machine."""
    part = share_of_process(cfg)
    if cfg.cutmix.chunk_size and part["batch_size"] % cfg.cutmix.chunk_size:
        raise ConfigError(
            f"cutmix.chunk_size {cfg.cutmix.chunk_size} does not divide the {part['batch_size']} images a step of a process "
            f"(training.batch_size {cfg.training.batch_size}, processes: {part['world_size']})"
        )
    groups = [Views(g["count"], g.get("size", cfg.model.image_size), tuple(g["scale"])) for g in cfg.crops.groups]
    made = MultiCropLoader
    if cfg.data.augment_on == "device":
        from ..loader.gpu import DeviceLoader

        made = functools.partial(DeviceLoader, device=machine.device, compile=machine.compile)
    return made(
        cfg.data.train,
        seed=cfg.training.seed,
        cutmix_alpha=cfg.cutmix.alpha,
        views=groups,
        augment=make_augment(cfg),
        cutmix_chunk=cfg.cutmix.chunk_size,
        cutmix_per_row=cfg.cutmix.per_sample,
        on_error=cfg.data.on_error,
        **part,
    )


def pretrain(cfg, probe=None):
    """Pretrain as `cfg` (see SCHEMA) says. Returns the run folder, which holds backbone.safetensors at the end.

    probe(backbone, machine) gives numbers to log, {name: percent}, every `cfg.online_eval.every` epochs; probe.check() raises before training what it would
    raise then. See evaluate.Probe.

    Raises ConfigError, BetonError, LoaderError, ValueError, OSError, MemoryError; Interrupted after a signal, when a checkpoint is written.
    """
    with distributed.processes(cfg.training.device), contextlib.ExitStack() as stack:
        return _pretrain(cfg, probe, stack)


def _make_model(cfg, labels):
    """(model, machine, what is said of its head). labels: int64 (images,)."""
    instances = labels.numel()
    machine = choose(cfg.training, cfg.training.epochs * -(-instances // cfg.training.batch_size))
    backbone = create_backbone(cfg.model.name, cfg.model.image_size, cfg.model.drop_path, cfg.model.options)
    if cfg.method.name != "idmm":
        if cfg.cutmix.alpha > 0:
            raise ConfigError(
                f"{cfg.method.name} can't use mixed images: cutmix.alpha must be 0. --config rn_configs/methods/{cfg.method.name}.yaml says so"
            )
        model = create_method(
            cfg.method.name, backbone, labels, [g["count"] for g in cfg.crops.groups], cfg.method.options
        )
        return machine.place(model).train(), machine, cfg.method.name
    if cfg.method.options:
        raise ConfigError(
            "method.options is for the other methods; idmm has its keys under head, cutmix and training.label_smoothing"
        )
    dense_mb = (
        cfg.training.batch_size
        // distributed.world()
        * sum(g["count"] for g in cfg.crops.groups)
        * instances
        * 4
        / 2**20
    )
    fused = dense_mb > cfg.head.max_dense_mb if cfg.head.loss == "auto" else cfg.head.loss == "fused"
    if cfg.head.sample_rate < 1 and cfg.head.loss == "dense":
        raise ConfigError("head.loss=dense does not go with head.sample_rate below 1; leave head.loss at auto")
    rate = cfg.head.sample_rate
    model = IDMM(backbone, instances, cfg.training.label_smoothing, fused, cfg.head.workspace_mb << 20, rate)
    kind = (
        f"fused loss over the batch's images and {rate:.3g} of the others"
        if rate < 1
        else f"{'fused' if model.fused else 'dense'} loss"
    )
    return machine.place(model).train(), machine, f"{kind} (dense logits: {dense_mb:,.0f} MB)"


def _forward(model, cfg, machine):
    """(the loss of a step of n images, whatever they show, as a function of n; bytes of an image's views)."""
    groups = [(g["count"], g.get("size", cfg.model.image_size)) for g in cfg.crops.groups]

    def forward(n):
        images = [
            torch.zeros(count * n, 3, size, size, dtype=torch.uint8, device=machine.device) for count, size in groups
        ]
        rows = [torch.zeros(count * n, dtype=torch.int64, device=machine.device) for count, _ in groups]
        return model(images, rows, rows, [torch.ones(count * n, device=machine.device) for count, _ in groups])

    return forward, sum(3 * count * size * size for count, size in groups)


def _pretrain(cfg, probe, stack):
    train = open_beton(cfg.data.train)
    labels = torch.from_numpy(train.label)

    def trial():
        model, machine, _ = _make_model(changed(SCHEMA, cfg, {"training.batch_size": DEFAULT_BATCH_SIZE}), labels)
        return model, machine, *_forward(model, cfg, machine)

    cfg = fix_batch_size(SCHEMA, cfg, trial, cfg.cutmix.chunk_size or 1)
    check_warmup(cfg)
    torch.manual_seed(cfg.training.seed)
    model, machine, kind = _make_model(cfg, labels)
    loader = make_loader(cfg, machine)
    if probe is not None and cfg.online_eval.every:
        distributed.broadcast_from_main(probe.check)  # the only one that will look
    run = stack.enter_context(contextlib.closing(Run(cfg.logging.run_dir, cfg, cfg.training.resume, {"train": train})))
    if run.state is None and run.main:
        plot_batch(loader, run.folder / "crops.png")
    run.announce(
        f"{cfg.model.name} at {cfg.model.image_size}, {len(loader.indices)} images, {sum(v.count for v in loader.views)} views each, "
        f"{cfg.training.epochs} epochs of {len(loader)} steps; {kind}; {machine}"
    )
    distributed.seed_apart(cfg.training.seed)
    choose_attention(model, machine)
    prepared = machine.prepare(model)

    def loss_of(groups, epoch, step):
        return prepared(*map(list, zip(*groups)), loader.share_of(step))

    def end_epoch(epoch, last):
        if probe is None or not cfg.online_eval.every or ((epoch + 1) % cfg.online_eval.every and not last):
            return None
        found = distributed.broadcast_from_main(lambda: probe(model.kept, machine))
        model.train()
        run.say(f"epoch {epoch + 1}: " + "  ".join(f"{name} {value:.2f} %" for name, value in found.items()))
        return found

    with oom_hint(cfg.training.batch_size, lambda: max_batch_size(model, machine, *_forward(model, cfg, machine))):
        fit(run, cfg, loader, model, machine, loss_of, title="pretrain", end_epoch=end_epoch)
    if run.main:
        if not cfg.training.max_steps:
            save_backbone(model.kept, run.folder / "backbone.safetensors")
        plot_curves(run.folder)
    return run.folder
