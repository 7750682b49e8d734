"""Fine-tuning with labels, at one resolution: mixup in even epochs, CutMix in odd ones."""

import contextlib
from pathlib import Path

import numpy as np
import torch

from ..beton import open_beton
from ..config import ConfigError, changed
from ..config.finetune import SCHEMA
from ..evaluate.accuracy import check_same_classes, top_k
from ..files import write_json
from ..loader import MultiCropLoader, Views
from ..loader.cutmix import sample_mixup
from ..losses import instance_loss
from ..models import Classifier, create_backbone, feature_dim, init_head, load_backbone, save_classifier, timm_config
from ..plots.batch import plot_batch
from ..plots.curves import plot_curves
from ..runtime import distributed
from ..runtime.device import choose, choose_attention
from .batch_size import fix_batch_size, max_batch_size, oom_hint
from .run_dir import Run
from .task import check_warmup, make_augment, share_of_process
from .trainer import fit


def _forward(model, size, machine):
    """(the loss of a step of n images, whatever they show, as a function of n; bytes of an image)."""

    def forward(n):
        images = torch.zeros(n, 3, size, size, dtype=torch.uint8, device=machine.device)
        partner = torch.zeros(n, dtype=torch.int64, device=machine.device)
        return model(images, partner, torch.tensor(0.5)).float().logsumexp(1).mean()

    return forward, 3 * size * size


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


def run_stages(cfg):
    """Fine-tune stage after stage, as `cfg.progressive.stages` says; the first from `cfg.model.init`, every other from the end of the one before it. Returns
    the results of all, and writes them to result.json in the run folder. Called again, it goes on in the stage where it was stopped.

    Raises what `finetune` does.
    """
    if not cfg.progressive.stages:
        raise ConfigError(
            "progressive.stages is empty: the configurations *_finetune.yaml in rn_configs/ have some, to begin from"
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
                **({"model.init": str(folder / f"stage_{k - 1}"), "model.init_head": True} if k > 1 else {}),
                **changes,
                "logging.run_dir": str(folder / f"stage_{k}"),
            },
        )
        for k, changes in enumerate(cfg.progressive.stages, 1)
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
    check_warmup(cfg)
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

    cfg = fix_batch_size(SCHEMA, cfg, trial)
    loader = MultiCropLoader(
        cfg.data.train,
        seed=cfg.training.seed,
        cutmix_alpha=0.0,
        views=[Views(1, size, tuple(cfg.crops.scale), interpolation="bicubic")],
        augment=make_augment(cfg),
        rows=rows,
        on_error=cfg.data.on_error,
        **share_of_process(cfg),
    )
    if cfg.model.init is not None:
        load_backbone(backbone, cfg.model.init, head if cfg.model.init_head else None)
    elif cfg.model.init_head:
        raise ConfigError("model.init_head needs model.init, the fine-tuning whose classifier is kept")
    run = stack.enter_context(
        contextlib.closing(Run(cfg.logging.run_dir, cfg, cfg.training.resume, {"train": train, "test": test}))
    )
    machine = choose(cfg.training, cfg.training.epochs * len(loader))
    model = machine.place(Classifier(backbone, head)).train()
    labels = labels.to(machine.device)
    if run.state is None and run.main:
        plot_batch(loader, run.folder / "crops.png")
    run.announce(
        f"{cfg.model.name} at {size} from {cfg.model.init or 'random weights'}, {rows.size} images, {classes} classes, "
        f"{cfg.training.epochs} epochs of {len(loader)} steps; {machine}"
    )
    distributed.seed_apart(cfg.training.seed)
    choose_attention(model, machine)
    prepared = machine.prepare(model)
    alpha, seed = cfg.mixup_cutmix.alpha, cfg.training.seed

    def begin_epoch(epoch):
        loader.cutmix_alpha = alpha if epoch % 2 == 1 else 0.0

    def loss_of(groups, epoch, step):
        ((images, rows_a, rows_b, lam),) = groups
        if alpha > 0 and epoch % 2 == 0:
            share, partner = sample_mixup(seed, epoch, step, rows_a.numel(), alpha)
            partner = torch.from_numpy(partner).to(rows_a.device, non_blocking=True)
            rows_b, lam = rows_a[partner], torch.full_like(lam, share)
        else:
            partner, share = torch.arange(rows_a.numel(), device=rows_a.device), 1.0
        logits = prepared(images, partner, torch.tensor(share, dtype=torch.float32))
        return loader.share_of(step) * instance_loss(
            logits, labels[rows_a], labels[rows_b], lam, cfg.training.label_smoothing
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

    with oom_hint(cfg.training.batch_size, lambda: max_batch_size(model, machine, *_forward(model, size, machine))):
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
        plot_curves(run.folder)
    return result
