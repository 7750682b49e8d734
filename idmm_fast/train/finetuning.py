"""Fine-tuning with labels, at one resolution: mixup in even epochs, CutMix in odd ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from ..beton import open_beton
from ..config import ConfigError, replace
from ..config.finetune import SCHEMA, check
from ..evaluate import EvaluationImages
from ..evaluate.accuracy import top_k
from ..evaluate.classes import class_names, match_labels, warn_of_shared
from ..evaluate.classification import classify, write_report
from ..files import write_json
from ..loader import ImageCache, MultiCropLoader, Views, open_cache
from ..loader.cutmix import sample_mixup
from ..losses import instance_loss
from ..models import (
    Classifier,
    FrozenBackbone,
    Normalize,
    create_backbone,
    feature_dim,
    init_head,
    load_backbone,
    resolve_normalization,
    save_classifier,
    timm_config,
)
from ..runtime.device import Runtime, resolve_runtime
from . import checkpoint
from .batch_size import fix_batch_size
from .run_dir import RunDir
from .task import Groups, Task, check_warmup, loader_args, make_augment, train
from .time_budget import steps_ahead


def finetune(cfg: SimpleNamespace) -> dict[str, Any]:
    """Fine-tune with labels.

    Args:
        cfg: a configuration of config.finetune.SCHEMA.

    Returns:
        {"top1", "top5", ...}: percent on data.test after the last epoch; and "best_top1", the highest of all
        evaluations, with "best_epoch": data.test chose that one, so it is optimistic. With data.val that split chooses
        the epoch whose weights are kept: "top1" and "top5" are theirs on data.test, "val_top1" is the accuracy they
        were chosen for. {} after a dry run (training.max_steps).

    Raises:
        ConfigError, BetonError, LoaderError, ValueError, OSError, MemoryError: see their sentences.
        Interrupted: after a signal; a checkpoint is written, if the step could be finished.
        FloatingPointError: the loss or weights are not finite.
    """
    return train(Finetuning, cfg)


class Finetuning(Task):
    """Fine-tuning as a task of the trainer; see `finetune`."""

    title = "fine-tune"
    model: Classifier

    def __init__(self, cfg: SimpleNamespace) -> None:
        check(cfg)
        check_warmup(cfg)
        torch.manual_seed(cfg.training.seed)
        train_beton, test_beton = open_beton(cfg.data.train), open_beton(cfg.data.test)
        self.betons = {"train": train_beton, "test": test_beton}
        if cfg.data.val is not None:
            self.betons["val"] = open_beton(cfg.data.val)
        self.chosen_by = "val" if "val" in self.betons else "test"  # the split that the best epoch is chosen on
        self.eval_labels = {
            split: torch.from_numpy(match_labels(train_beton, self.betons[split])) for split in ("test", self.chosen_by)
        }
        for split in self.eval_labels:
            warn_of_shared(train_beton, self.betons[split])
        self.label_names = class_names(train_beton, test_beton)
        cfg = replace(SCHEMA, cfg, resolve_normalization(cfg.model))
        self.rows = choose_rows(train_beton.label, cfg.data.per_class, cfg.training.seed)
        size, init = cfg.model.image_size, cfg.model.init
        backbone = create_backbone(cfg.model.name, size, cfg.model.drop_path, cfg.model.options)
        head = init_head(feature_dim(backbone), len(self.label_names))
        kind = FrozenBackbone if cfg.model.freeze else Classifier
        classifier = kind(backbone, head, Normalize(False, cfg.model.mean, cfg.model.std))

        def dry_run() -> tuple[nn.Module, Runtime, Callable[[int], torch.Tensor], int]:
            runtime = resolve_runtime(cfg.training, 0)
            model = runtime.to_device(classifier).train()
            return model, runtime, *_step_cost(model, size, runtime)

        self.cfg = cfg = fix_batch_size(SCHEMA, cfg, dry_run)
        every, epochs = cfg.training.evaluate_every, cfg.training.epochs
        if cfg.training.minutes:  # how many is not known yet
            epochs = max(2, 2 * every)
        cache = open_cache(train_beton, self.rows, cfg.data.cache, epochs)
        self.loader = _make_loader(cfg, self.rows, cache)
        evaluations = -(-epochs // every) if every else 1
        self.eval_cache = open_cache(self.betons[self.chosen_by], None, cfg.data.cache, evaluations, beside=cache.size)
        if init is not None:
            load_backbone(backbone, init, head if cfg.model.init_head else None)
        self.runtime = resolve_runtime(cfg.training, steps_ahead(cfg.training, len(self.loader)))
        self.model = self.runtime.to_device(classifier).train()
        self.evaluated_images = len(self.betons[self.chosen_by])
        self.ema = cfg.training.ema and ModelEmaV3(self.model, decay=cfg.training.ema, use_warmup=True)
        self.average = self.ema.module if self.ema else None
        self.labels = torch.from_numpy(train_beton.label).to(self.runtime.device)
        unlabelled = int((train_beton.label < 0).sum())
        self.description = (
            f"{cfg.model.name} at {size} from {init_of(cfg.model)}"
            + " (frozen)" * cfg.model.freeze
            + f", {self.rows.size} images, {len(self.label_names)} classes"
            + (f" ({unlabelled} images without a label are left out)" if unlabelled else "")
            + (f"; {cache.description}" if cache.description else "")
        )

    def loss(self, groups: Groups, epoch: int, step: int) -> torch.Tensor:
        """Cross-entropy of the two labels of each image, mixed by mixup in even epochs; see Task.loss."""
        ((images, idx_a, idx_b, lam),) = groups
        alpha, device = self.cfg.mixup_cutmix.alpha, idx_a.device
        if alpha > 0 and epoch % 2 == 0:
            lam_mixup, chosen = sample_mixup(self.cfg.training.seed, epoch, step, idx_a.numel(), alpha)
            partner = torch.from_numpy(chosen).to(device, non_blocking=True)
            idx_b, lam = idx_a[partner], torch.full_like(lam, lam_mixup)
        else:
            partner, lam_mixup = torch.arange(idx_a.numel(), device=device), 1.0
        logits = self.model_for(step)(images, partner, torch.tensor(lam_mixup, dtype=torch.float32))
        loss = instance_loss(logits, self.labels[idx_a], self.labels[idx_b], lam, self.cfg.training.label_smoothing)
        return self.loader.loss_weight(step) * loss

    def after_step(self, step: int, progress: float) -> None:
        """Move the average of the weights, where there is one; at first it follows them faster, see timm's ModelEmaV3.

        Its decay is 1 - n ** (-2 / 3) until that exceeds training.ema, n being the number of steps.
        """
        if self.ema:
            self.ema.update(self.model, step=step + 1)

    def step_cost(self) -> tuple[Callable[[int], torch.Tensor], int]:
        """See Task.step_cost."""
        return _step_cost(self.model, self.cfg.model.image_size, self.runtime)

    def evaluate(self, epoch: int, last: bool) -> dict[str, float] | None:
        """Top-1 and top-5 on data.val, else data.test, every training.evaluate_every epochs and after the last one."""
        every = self.cfg.training.evaluate_every
        if not last and not (every and (epoch + 1) % every == 0):
            return None
        return self._accuracy(self.chosen_by)

    def stops_early(self, run: RunDir) -> bool:
        """Whether the last training.patience evaluations had no better top-1 than the best one before them."""
        patience = self.cfg.training.patience
        top1 = [line["top1"] for line in run.evaluations()] if patience else []
        return len(top1) > 0 and len(top1) - int(np.argmax(top1)) > patience

    def _accuracy(self, split: str) -> dict[str, float]:
        return top_k(self.average or self.model, self._images(split), self.eval_labels[split], self.runtime)

    def _images(self, split: str) -> EvaluationImages:
        loader = self.loader
        return EvaluationImages(
            self.betons[split].path,
            self.cfg.model.image_size,
            loader.batch_size,
            loader.num_workers,
            on_error=self.cfg.data.on_error,
            cache=self.eval_cache if split == self.chosen_by else None,
        )

    def finish(self, run: RunDir) -> dict[str, Any]:
        """Write model.safetensors, config.json, result.json and the report; return the results, see `finetune`."""
        if self.cfg.training.max_steps:  # a dry run
            return {}
        evaluations, model = run.evaluations(), self.cfg.model
        last, best = evaluations[-1], max(evaluations, key=lambda line: line["top1"])
        kept: Any = self.average or self.model
        chosen = {"best_top1": best["top1"], "best_epoch": best["epoch"]}
        if self.chosen_by == "val":  # what it has chosen is what is kept, and tested once
            if best["epoch"] != last["epoch"]:
                state = checkpoint.load(run.checkpoints / "best.pt")
                kept.load_state_dict(state.get("average") or state["model"])
                best = {"epoch": state["epoch"], "top1": state["top1"]}
            last = self._accuracy("test")
            chosen = {"val_top1": best["top1"], "best_epoch": best["epoch"], "val_images": len(self.betons["val"])}
        result = {
            "top1": last["top1"],
            "top5": last["top5"],
            **chosen,
            **({"images_skipped": last["images_skipped"]} if "images_skipped" in last else {}),
            "train_images": int(self.rows.size),
            "test_images": len(self.betons["test"]),
            "init": model.init,
            **({"stopped_epoch": evaluations[-1]["epoch"]} if self.has_stopped_early else {}),
        }
        if run.is_main:
            backbone, head = kept.backbone, kept.head
            save_classifier(backbone, head, run.folder / "model.safetensors")
            write_json(run.folder / "config.json", timm_config(backbone, model, self.label_names))
            write_json(run.folder / "result.json", result)
            if self.cfg.logging.report:
                images, title = self._images("test"), f"{run.folder.name}: {model.name} from {init_of(model)}"
                found = classify(kept, images, self.eval_labels["test"].numpy(), self.label_names, self.runtime)
                write_report(found, images, run.folder, title, int(self.rows.size))
        return result


def init_of(model: SimpleNamespace) -> str:
    """What the section `model` starts from, in words."""
    return model.init or "random weights"


def choose_rows(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Choose the labelled training images.

    Args:
        labels: int64 (images,).
        per_class: images of each class, chosen at random; 0: all.
        seed: of the choice.

    Returns:
        int64 (n,): dataset rows, sorted. Those without a label (-1) are left out.

    Raises:
        ConfigError: a class has fewer images.
    """
    if per_class == 0:
        return np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[labels >= 0])
    if counts[counts > 0].min() < per_class:
        smallest = int(np.where(counts > 0, counts, 1 << 60).argmin())
        raise ConfigError(f"data.per_class is {per_class}, but class {smallest} has {counts[smallest]} images")
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.flatnonzero(counts)]
    return np.sort(np.concatenate(chosen))


def _make_loader(cfg: SimpleNamespace, rows: np.ndarray, cache: ImageCache) -> MultiCropLoader:
    """The loader of the training images `rows`, which mixes by CutMix in odd epochs."""
    return MultiCropLoader(
        cfg.data.train,
        seed=cfg.training.seed,
        cutmix_alpha=lambda epoch: cfg.mixup_cutmix.alpha if epoch % 2 else 0.0,
        views=[Views(1, cfg.model.image_size, tuple(cfg.crops.scale), interpolation="bicubic")],
        augment=make_augment(cfg),
        rows=rows,
        on_error=cfg.data.on_error,
        cache=cache,
        **loader_args(cfg),
    )


def _step_cost(model: nn.Module, size: int, runtime: Runtime) -> tuple[Callable[[int], torch.Tensor], int]:
    """See Task.step_cost."""

    def loss(n: int) -> torch.Tensor:
        images = torch.zeros(n, 3, size, size, dtype=torch.uint8, device=runtime.device)
        partner = torch.zeros(n, dtype=torch.int64, device=runtime.device)
        return model(images, partner, torch.tensor(0.5)).float().logsumexp(1).mean()

    return loss, 3 * size * size
