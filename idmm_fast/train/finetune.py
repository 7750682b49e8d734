"""Fine-tuning with labels, at one resolution: mixup in even epochs, CutMix in odd ones."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from scipy.special import betaincinv
from torch import nn

from ..beton import open_beton
from ..config import ConfigError, Flag, Pair, Param, Stages, Text, Whole, changed
from ..loader import Augment, MultiCropLoader, Views
from ..loader.philox import MIXUP_STREAM, permutation, uniforms
from ..losses import instance_loss
from ..models import (
    Normalize,
    create_backbone,
    feature_dim,
    init_head,
    load_backbone,
    save_classifier,
    timm_config,
)
from . import distributed, memory, settings
from .accuracy import check_same_classes, top_k
from .crops import draw_batch
from .curves import draw_curves
from .device import choose, choose_attention
from .loop import fit
from .run import Run, write_json

AUGMENT = Augment(jitter=0.4, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0, operations=2)

SCHEMA = {
    "data": (
        "what is read",
        {
            **settings.data(test=True)[1],
            "per_class": Param(
                Whole(0), "use this many labelled training images a class, chosen by training.seed; 0: all", default=0
            ),
        },
    ),
    "model": (
        "the backbone",
        {
            **settings.MODEL[1],
            "image_size": Param(Whole(8, 4096), "side of the input in pixels", default=224),
            "init": Param(
                Text(),
                "run folder, checkpoint or .safetensors (timm's too) to start from; none: random weights",
                default=None,
            ),
            "keep_head": Param(
                Flag(), "take the classifier from there too, which a fine-tuning of the same classes has", default=False
            ),
        },
    ),
    "views": (
        "the view of every image",
        {
            "scale": Param(
                Pair(), "range of the share of the image's area that a random crop takes", default=[0.08, 1.0]
            )
        },
    ),
    "augment": settings.augment(AUGMENT),
    "mixing": settings.mixing(0.5),
    "training": (
        "how it is trained",
        {
            **settings.training(lr=5e-4, epochs=200)[1],
            "evaluate_every": Param(
                Whole(0), "epochs between evaluations on data.test; 0: only after the last", default=10
            ),
        },
    ),
    "ladder": (
        "what --stages runs",
        {
            "stages": Param(
                Stages(),
                "changes for each stage; each begins with the weights and the classifier of the one before, in RUN_DIR/stage_K",
                default=[],
            )
        },
    ),
    "logging": settings.logging(),
}


class Classifier(nn.Module):
    """Backbone and linear layer, from uint8 images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, backbone, head):
        super().__init__()
        self.normalize, self.backbone, self.head = Normalize(), backbone, head

    def forward(self, images, partner=None, share=None):
        """With `partner` (int64 (B,)) and `share` (float): mixup, x = share * x + (1 - share) * x[partner]."""
        x = self.normalize(images)
        if partner is not None:
            x = share * x + (1 - share) * x[partner]
        return self.head(self.backbone(x))


def _forward(model, size, machine):
    """(the loss of a step of n images, whatever they show, as a function of n; bytes of an image)."""

    def forward(n):
        images = torch.zeros(n, 3, size, size, dtype=torch.uint8, device=machine.device)
        partner = torch.zeros(n, dtype=torch.int64, device=machine.device)
        return model(images, partner, torch.tensor(0.5)).float().logsumexp(1).mean()

    return forward, 3 * size * size


def draw_mixup(seed, epoch, step, n, alpha):
    """(share, partner int64 (n,)): share ~ Beta(alpha, alpha), folded to its larger half (Zhang et al., arXiv 1710.09412)."""
    share = betaincinv(alpha, alpha, uniforms(np.uint64(seed), step, epoch, MIXUP_STREAM, 0)[0])
    return max(share, 1 - share), permutation(np.uint64(seed), step, epoch, MIXUP_STREAM + 1, n)


def choose_rows(labels, per_class, seed):
    """Dataset rows, sorted: all, or `per_class` of each class chosen at random. Raises ConfigError if a class has fewer."""
    if per_class == 0:
        return np.arange(labels.size)
    counts = np.bincount(labels)
    if counts[counts > 0].min() < per_class:
        raise ConfigError(
            f"data.per_class is {per_class}, but class {int(np.where(counts > 0, counts, 1 << 60).argmin())} has {counts[counts > 0].min()} images"
        )
    rng = np.random.default_rng(seed)
    return np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.flatnonzero(counts)])
    )


def ladder(cfg):
    """Fine-tune stage after stage, as `cfg.ladder.stages` says; the first from `cfg.model.init`, every other from the end of the one before it. Returns
    the results of all, and writes them to result.json in the run folder. Called again, it goes on in the stage where it was stopped.

    Raises what `finetune` does.
    """
    if not cfg.ladder.stages:
        raise ConfigError(
            "ladder.stages is empty: the configurations *_finetune.yaml in rn_configs/ have some, to begin from"
        )
    if cfg.training.max_steps:
        raise ConfigError(
            "training.max_steps does not go with --stages: a trial leaves no weights for the next stage to begin with"
        )
    folder, results = Path(cfg.logging.run_dir), []
    stages = [
        changed(
            SCHEMA,
            cfg,
            {
                "training.resume": "auto",
                **({"model.init": str(folder / f"stage_{k - 1}"), "model.keep_head": True} if k > 1 else {}),
                **changes,
                "logging.run_dir": str(folder / f"stage_{k}"),
            },
        )
        for k, changes in enumerate(cfg.ladder.stages, 1)
    ]
    with distributed.processes(cfg.training.device):
        for stage in stages:
            results.append(finetune(stage))
        if distributed.rank() == 0:
            write_json(folder / "result.json", results)
    return results


def finetune(cfg):
    """Fine-tune as `cfg` (see SCHEMA) says. Returns {"top1", "top5", ...}, percent on data.test after the last epoch, and
    "best_top1", the highest of all evaluations, with its epoch: data.test chose that one, so it flatters. Of a
    trial (training.max_steps), nothing.

    Raises ConfigError, BetonError, LoaderError, ValueError, OSError, MemoryError; Interrupted after a signal, when a checkpoint is written.
    """
    with distributed.processes(cfg.training.device), contextlib.ExitStack() as stack:
        return _finetune(cfg, stack)


def _finetune(cfg, stack):
    settings.check_warmup(cfg)
    torch.manual_seed(cfg.training.seed)
    if cfg.data.test is None:
        raise ConfigError("data.test is required: the beton whose accuracy is reported")
    train, test = open_beton(cfg.data.train), open_beton(cfg.data.test)
    check_same_classes(train, test)
    classes = int(max(train.label.max(), test.label.max())) + 1
    labels = torch.from_numpy(train.label)
    rows = choose_rows(train.label, cfg.data.per_class, cfg.training.seed)
    size = cfg.model.image_size
    backbone = create_backbone(cfg.model.name, size, cfg.model.drop_path, cfg.model.options)
    head = init_head(feature_dim(backbone), classes)

    def trial():
        machine = choose(cfg.training, 0)
        model = machine.place(Classifier(backbone, head)).train()
        return model, machine, *_forward(model, size, machine)

    cfg = settings.fix_batch_size(SCHEMA, cfg, trial)
    loader = MultiCropLoader(
        cfg.data.train,
        seed=cfg.training.seed,
        cutmix_alpha=0.0,
        views=[Views(1, size, tuple(cfg.views.scale), interpolation="bicubic")],
        augment=settings.make_augment(cfg),
        rows=rows,
        on_error=cfg.data.on_error,
        **settings.share_of_process(cfg),
    )
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init, head if cfg.model.keep_head else None)
    elif cfg.model.keep_head:
        raise ConfigError("model.keep_head needs model.init, the fine-tuning whose classifier is kept")
    run = stack.enter_context(
        contextlib.closing(Run(cfg.logging.run_dir, cfg, cfg.training.resume, {"train": train, "test": test}))
    )
    machine = choose(cfg.training, cfg.training.epochs * len(loader))
    model = machine.place(Classifier(backbone, head)).train()
    labels = labels.to(machine.device)
    if run.state is None and run.main:
        draw_batch(loader, run.folder / "crops.png")
    run.announce(
        f"{cfg.model.name} at {size} from {cfg.model.init or 'random weights'}, {rows.size} images, {classes} classes, "
        f"{cfg.training.epochs} epochs of {len(loader)} steps; {machine}"
    )
    distributed.seed_apart(cfg.training.seed)
    choose_attention(model, machine)
    prepared = machine.prepare(model)
    alpha, seed = cfg.mixing.alpha, cfg.training.seed

    def begin_epoch(epoch):
        loader.cutmix_alpha = alpha if epoch % 2 == 1 else 0.0

    def loss_of(groups, epoch, step):
        ((images, rows_a, rows_b, lam),) = groups
        if alpha > 0 and epoch % 2 == 0:
            share, partner = draw_mixup(seed, epoch, step, rows_a.numel(), alpha)
            partner = torch.from_numpy(partner).to(rows_a.device, non_blocking=True)
            rows_b, lam = rows_a[partner], torch.full_like(lam, share)
        else:
            partner, share = torch.arange(rows_a.numel(), device=rows_a.device), 1.0
        logits = prepared(images, partner, torch.tensor(share, dtype=torch.float32))
        return loader.share_of(step) * instance_loss(
            logits, labels[rows_a], labels[rows_b], lam, cfg.training.smoothing
        )

    test_labels = torch.from_numpy(test.label)

    def end_epoch(epoch, last):
        every = cfg.training.evaluate_every
        if last or (every and (epoch + 1) % every == 0):
            return top_k(
                model,
                cfg.data.test,
                test_labels,
                machine,
                loader.batch_size,
                size,
                loader.num_workers,
                on_error=cfg.data.on_error,
            )
        return None

    with memory.explained(
        cfg.training.batch_size, lambda: memory.largest_batch(model, machine, *_forward(model, size, machine))
    ):
        fit(run, cfg, loader, model, machine, loss_of, title="fine-tune", begin_epoch=begin_epoch, end_epoch=end_epoch)
    if cfg.training.max_steps:  # a trial
        return {}
    tested = run.tested()
    last, best = tested[-1], max(tested, key=lambda line: line["top1"])
    result = {key: last[key] for key in ("top1", "top5")}
    result |= {
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
    }  # chosen on data.test itself, so flattering; top1 is the last epoch's
    skipped = {"images_skipped": last["images_skipped"]} if "images_skipped" in last else {}
    result = {**result, **skipped, "train_images": int(rows.size), "test_images": len(test), "init": cfg.model.init}
    if run.main:
        save_classifier(model.backbone, model.head, run.folder / "model.safetensors")
        write_json(
            run.folder / "config.json", timm_config(model.backbone, cfg.model.name, size, classes, cfg.model.options)
        )
        write_json(run.folder / "result.json", result)
        draw_curves(run.folder)
    return result
