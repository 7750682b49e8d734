"""What pretraining and fine-tuning make of a configuration alike."""

import sys

from ..config import ConfigError
from ..loader import Augment
from ..runtime import distributed


def make_augment(cfg):
    """The loader's Augment from the `augment` section."""
    return Augment(**{**vars(cfg.augment), "blur_sigma": tuple(cfg.augment.blur_sigma)})


def share_of_process(cfg):
    """The loader's arguments that several processes differ in, or share: {"batch_size", "num_workers", "rank", "world_size"}."""
    size, world = cfg.training.batch_size, distributed.world()
    if size % world:
        raise ConfigError(f"training.batch_size {size} is shared by {world} processes, which does not divide it")
    workers = cfg.data.num_workers or distributed.cores()
    return {"batch_size": size // world, "num_workers": workers, "rank": distributed.rank(), "world_size": world}


def check_warmup(cfg):
    """Say so where the warm-up is as long as the training, which then ends at its highest rate, or below."""
    epochs, warmup = cfg.training.epochs, cfg.training.warmup_epochs
    if warmup >= epochs and not cfg.training.max_steps and distributed.rank() == 0:
        print(
            f"training.warmup_epochs {warmup:g} is not below training.epochs {epochs}: the learning rate will only rise",
            file=sys.stderr,
        )
