"""How many images a step fit into memory: the bytes that one more image takes are measured, and what is free."""

from __future__ import annotations

import contextlib
import resource
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from .. import limits
from ..config import ConfigError, replace
from ..config.load import Schema, is_run_config, read_run_config
from ..runtime import distributed
from ..runtime.device import Runtime
from .run_dir import effective_resume

USABLE_FRACTION = 0.8  # of what is free; the rest is for what backward needs for a moment, and for fragmentation
DEFAULT_BATCH_SIZE = 256  # images a step, the recipe's: the learning rate is not meant for more


def free_bytes(device: torch.device) -> float:
    """Bytes that this process may still take.

    On a GPU those of the device, else the least of what the system, its cgroup and ulimit allow.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    found = [limits.free_memory()]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return max(0, min(found)) // distributed.local_world()


def bytes_of_a_step(loss: Callable[[int], torch.Tensor], images: int) -> int:
    """Bytes that the loss of a step of `images` images, `loss(images)`, keeps for its backward pass."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(images)
    return sum(seen.values())


def max_batch_size(model: nn.Module, runtime: Runtime, loss: Callable[[int], torch.Tensor], image_bytes: int) -> int:
    """How many images a step fit into this process's memory.

    Args:
        model: the module that is trained.
        runtime: the runtime.device.Runtime that it is trained on.
        loss: gives the loss of a step of n images, whatever they show, as a function of n.
        image_bytes: bytes that the loader holds of an image for each step.

    Returns:
        A number of images, 1 .. DEFAULT_BATCH_SIZE.

    Raises:
        MemoryError: not even three images fit.
    """
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    # What is drawn here, by drop path, must not change what the training draws, nor do these images count for the
    # running statistics of batch normalisation.
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with oom_told("a step of three images"), runtime.autocast(), torch.random.fork_rng(devices):
        an_image = bytes_of_a_step(loss, 3) - bytes_of_a_step(loss, 2)
    for buffer, before in statistics:
        buffer.copy_(before)
    moments = 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)  # and the gradient
    fit = (USABLE_FRACTION * free_bytes(runtime.device) - moments) / (an_image + 4 * image_bytes)
    return int(max(1, min(DEFAULT_BATCH_SIZE, fit)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, of the device or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no memory"])[0][:120]


@contextlib.contextmanager
def oom_told(what: str) -> Iterator[None]:
    """Turn torch's out-of-memory error in the block into a MemoryError that says that `what` does not fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"{what} does not fit into memory ({_first_line(error)}). Use a smaller model.name or model.image_size"
        ) from None


@contextlib.contextmanager
def oom_hint(
    training: SimpleNamespace, can_accumulate: bool, fits: Callable[[], int], multiple: int = 1
) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a MemoryError that says what would fit.

    Args:
        training: the section `training` of a configuration.
        can_accumulate: whether smaller batches may make up a step.
        fits: called without arguments, gives the images a step of a process that fit. Not called with several
            processes: the others are in the failed step, and would not answer.
        multiple: what the images a step of each process must be a multiple of.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        short = _first_line(error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed step
    else:
        return
    batch_size, unit = training.batch_size, multiple * distributed.world()
    number = batch_size // 2
    if distributed.world() == 1:
        number = min(number, fits())  # here, where nothing of the failed step is held any more
    number = max(1, number // unit) * unit
    added = f"; with --training.accumulate={training.accumulate * -(-batch_size // number)} a step has its images"
    fewer = (
        f"--training.batch_size={number} should fit{added if can_accumulate else ''}, and --training.batch_size=auto "
        f"finds what fits before it begins. "
    )
    raise MemoryError(
        f"out of memory with training.batch_size {batch_size} ({short}). {fewer if number < batch_size else ''}"
        f"A smaller model.image_size or training.amp=bf16 takes less{' too' if number < batch_size else ''}."
    )


def fix_batch_size(
    schema: Schema,
    cfg: SimpleNamespace,
    dry_run: Callable[[], tuple[nn.Module, Runtime, Callable[[int], torch.Tensor], int]],
    multiple: int = 1,
) -> SimpleNamespace:
    """Give training.batch_size=auto a number: the one that the run started with, or what fits into memory.

    Args:
        schema: the schema of `cfg`.
        cfg: a configuration.
        dry_run: called without arguments, gives (model, runtime, loss, image_bytes), see `max_batch_size`.
        multiple: what the images a step of each process must be a multiple of.

    Returns:
        The configuration with a number for training.batch_size.

    Raises:
        MemoryError: not even `multiple` images fit.
        ConfigError: they are more than a process is given.
    """
    if cfg.training.batch_size != "auto":
        return cfg
    started = _started_size(cfg)
    if started is not None:
        return replace(schema, cfg, {"training.batch_size": started})
    most = DEFAULT_BATCH_SIZE // distributed.world() // multiple * multiple
    if most < 1:
        raise ConfigError(
            f"training.batch_size=auto is at most {DEFAULT_BATCH_SIZE} images, which {distributed.world()} processes "
            f"with cutmix.chunk_size {multiple} can't share: give it a number, or use a smaller cutmix.chunk_size"
        )
    fits = min(most, *distributed.all_gather_objects(max_batch_size(*dry_run()))) // multiple * multiple
    if fits < 1:
        raise MemoryError(
            f"not even the {multiple} images of cutmix.chunk_size fit into memory; use a smaller model.image_size or "
            f"cutmix.chunk_size"
        )
    size = fits * distributed.world()
    if distributed.rank() == 0:
        print(f"training.batch_size=auto: {size}")
    return replace(schema, cfg, {"training.batch_size": size})


def _started_size(cfg: SimpleNamespace) -> int | None:
    """training.batch_size of the run that `cfg` resumes; None where there is no such run."""
    resume = effective_resume(cfg.logging.run_dir, cfg.training.resume)
    folder = Path(cfg.logging.run_dir)
    is_begun = resume != "auto" or is_run_config(folder / "config.yaml")  # and not one that it lies in
    if resume == "no" or not is_begun:
        return None
    size = read_run_config(folder if resume == "auto" else resume).get("training", {}).get("batch_size")
    return size if isinstance(size, int) else None
