"""Pretraining, by IDMM or another method."""

import contextlib
import functools

import torch

from ..beton import open_beton
from ..config import ConfigError, Flag, Mapping, Number, OneOf, Param, Whole, changed
from ..loader import Augment, MultiCropLoader, Views
from ..methods import IDMM, METHODS, create_method, options_of
from ..models import create_backbone, save_backbone
from . import distributed, memory, settings
from .crops import draw_batch
from .curves import draw_curves
from .device import choose, choose_attention
from .loop import fit
from .run import Run

SCHEMA = {
    "data": (
        "what is read",
        {
            **settings.data(test=False)[1],
            "views_on": Param(
                OneOf("cpu", "device"),
                "where views are made: cpu: by the loader's threads; device: where training runs, from images kept there decoded (small datasets, few cores)",
                default="cpu",
            ),
        },
    ),
    "model": settings.MODEL,
    "method": (
        "how it learns; rn_configs/methods/ has the settings of each",
        {
            "name": Param(OneOf(*METHODS), "idmm, or one to compare it with", default="idmm"),
            "options": Param(
                Mapping(),
                "of a method other than idmm: "
                + "; ".join(f"{m}: {', '.join(options_of(m))}" for m in METHODS if m != "idmm"),
                default={},
            ),
        },
    ),
    "views": settings.views(),
    "augment": settings.augment(Augment()),
    "cutmix": (
        settings.mixing(0.5)[0],
        {
            **settings.mixing(0.5)[1],
            "chunk": Param(
                Whole(0),
                "images that mix among themselves; must divide training.batch_size; 0: all of a batch",
                default=0,
            ),
            "per_row": Param(Flag(), "a box for every row instead of one for each group of views", default=False),
        },
    ),
    "head": (
        "the linear layer that tells the images apart, and its loss",
        {
            "loss": Param(
                OneOf("auto", "dense", "fused"),
                "dense: logits of all rows and images at once; fused: never; auto: fused where they would exceed head.dense_mb",
                default="auto",
            ),
            "dense_mb": Param(Whole(0), "the most that the dense logits of a step may take, in MB", default=512),
            "sample_rate": Param(
                Number(1e-9, 1),
                "below 1: of the images that are not in the batch only this share, drawn anew, takes part in a step (for very many)",
                default=1.0,
            ),
            "scratch_mb": Param(
                Whole(1), "what the fused loss may use beyond weights and gradients, in MB", default=768
            ),
        },
    ),
    "probe": (
        "how good the features are, looked at while training: on data.test, with the labels of data.train",
        {
            "every": Param(Whole(0), "epochs between two looks, and one at the end; 0: never", default=0),
            "linear": Param(Flag(), "a linear probe too, not only nearest neighbours", default=False),
        },
    ),
    "training": settings.training(lr=5e-4, epochs=800),
    "logging": settings.logging(),
}


def make_loader(cfg, machine):
    """The loader that a pretraining configuration asks for, on this machine."""
    part = settings.share_of_process(cfg)
    if cfg.cutmix.chunk and part["batch_size"] % cfg.cutmix.chunk:
        raise ConfigError(
            f"cutmix.chunk {cfg.cutmix.chunk} does not divide the {part['batch_size']} images a step of a process "
            f"(training.batch_size {cfg.training.batch_size}, processes: {part['world_size']})"
        )
    groups = [Views(g["count"], g.get("size", cfg.model.image_size), tuple(g["scale"])) for g in cfg.views.groups]
    made = MultiCropLoader
    if cfg.data.views_on == "device":
        from ..loader.on_device import DeviceLoader

        made = functools.partial(DeviceLoader, device=machine.device, compile=machine.compile)
    return made(
        cfg.data.train,
        seed=cfg.training.seed,
        cutmix_alpha=cfg.cutmix.alpha,
        views=groups,
        augment=settings.make_augment(cfg),
        cutmix_chunk=cfg.cutmix.chunk,
        cutmix_per_row=cfg.cutmix.per_row,
        on_error=cfg.data.on_error,
        **part,
    )


def pretrain(cfg, probe=None):
    """Pretrain as `cfg` (see SCHEMA) says. Returns the run folder, which holds backbone.safetensors at the end.

    probe(backbone, machine) gives numbers to log, {name: percent}, every `cfg.probe.every` epochs; probe.check() raises before training what it would
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
            cfg.method.name, backbone, labels, [g["count"] for g in cfg.views.groups], cfg.method.options
        )
        return machine.place(model).train(), machine, cfg.method.name
    if cfg.method.options:
        raise ConfigError(
            "method.options is for the other methods; idmm has its keys under head, cutmix and training.smoothing"
        )
    dense_mb = (
        cfg.training.batch_size
        // distributed.world()
        * sum(g["count"] for g in cfg.views.groups)
        * instances
        * 4
        / 2**20
    )
    fused = dense_mb > cfg.head.dense_mb if cfg.head.loss == "auto" else cfg.head.loss == "fused"
    if cfg.head.sample_rate < 1 and cfg.head.loss == "dense":
        raise ConfigError("head.loss=dense does not go with head.sample_rate below 1; leave head.loss at auto")
    rate = cfg.head.sample_rate
    model = IDMM(backbone, instances, cfg.training.smoothing, fused, cfg.head.scratch_mb << 20, rate)
    kind = (
        f"fused loss over the batch's images and {rate:.3g} of the others"
        if rate < 1
        else f"{'fused' if model.fused else 'dense'} loss"
    )
    return machine.place(model).train(), machine, f"{kind} (dense logits: {dense_mb:,.0f} MB)"


def _forward(model, cfg, machine):
    """(the loss of a step of n images, whatever they show, as a function of n; bytes of an image's views)."""
    groups = [(g["count"], g.get("size", cfg.model.image_size)) for g in cfg.views.groups]

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
        model, machine, _ = _make_model(changed(SCHEMA, cfg, {"training.batch_size": memory.USUAL}), labels)
        return model, machine, *_forward(model, cfg, machine)

    cfg = settings.fix_batch_size(SCHEMA, cfg, trial, cfg.cutmix.chunk or 1)
    settings.check_warmup(cfg)
    torch.manual_seed(cfg.training.seed)
    model, machine, kind = _make_model(cfg, labels)
    loader = make_loader(cfg, machine)
    if probe is not None and cfg.probe.every:
        distributed.from_main(probe.check)  # the only one that will look
    run = stack.enter_context(contextlib.closing(Run(cfg.logging.run_dir, cfg, cfg.training.resume, {"train": train})))
    if run.state is None and run.main:
        draw_batch(loader, run.folder / "crops.png")
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
        if probe is None or not cfg.probe.every or ((epoch + 1) % cfg.probe.every and not last):
            return None
        found = distributed.from_main(lambda: probe(model.kept, machine))
        model.train()
        run.say(f"epoch {epoch + 1}: " + "  ".join(f"{name} {value:.2f} %" for name, value in found.items()))
        return found

    with memory.explained(
        cfg.training.batch_size, lambda: memory.largest_batch(model, machine, *_forward(model, cfg, machine))
    ):
        fit(run, cfg, loader, model, machine, loss_of, title="pretrain", end_epoch=end_epoch)
    if run.main:
        if not cfg.training.max_steps:
            save_backbone(model.kept, run.folder / "backbone.safetensors")
        draw_curves(run.folder)
    return run.folder
