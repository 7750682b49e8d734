"""How many images a step fit into memory: what a step of one image more keeps, measured, against what is free."""

import contextlib
import resource
from pathlib import Path

import torch
import yaml

from .. import limits
from ..config import changed
from ..config.load import find_run_config
from ..runtime import distributed

SHARE = 0.8  # of what is free; the rest is for what backward needs for a moment, and for fragmentation
DEFAULT_BATCH_SIZE = 256  # images a step, the recipe's: more than that is not what the learning rate is for


def free_bytes(device):
    """Bytes that this process may still take: on a GPU those of the device, else the least of what the system, its cgroup and ulimit allow."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    found = [limits.free_memory()]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return max(0, min(found)) // distributed.local_world()


def bytes_of_a_step(forward, images):
    """Bytes that the loss of a step of so many images keeps for its backward; `forward(images)` gives that loss."""
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(images)
    return sum(seen.values())


def max_batch_size(model, machine, forward, image_bytes):
    """How many images a step of this process fit, at least 1 and at most USUAL.

    forward(n) gives the loss of a step of n images; image_bytes: what the loader holds of an image for each step.
    """
    with machine.autocast():
        an_image = bytes_of_a_step(forward, 3) - bytes_of_a_step(forward, 2)
    moments = 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)  # and the gradient
    fit = (SHARE * free_bytes(machine.device) - moments) / (an_image + 4 * image_bytes)
    return int(max(1, min(DEFAULT_BATCH_SIZE, fit)))


def is_out_of_memory(error):
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    )


@contextlib.contextmanager
def oom_hint(batch_size, fits):
    """Turn an error for want of memory into a MemoryError that says what would fit; `fits()` gives the images a step of a process."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        short = str(error).splitlines()[0][:120]
    else:
        return
    number = fits() * distributed.world()  # here, where nothing of the failed step is held any more
    number = min(number, max(1, batch_size // 2))
    raise MemoryError(
        f"out of memory with training.batch_size {batch_size} ({short}). --training.batch_size={number} should fit, and --training.batch_size=auto finds "
        f"what fits before it begins. A smaller model.image_size or training.amp=bf16 takes less too."
    )


def fix_batch_size(schema, cfg, make_model, chunk=1):
    """`cfg` of `schema` with a number for training.batch_size=auto: the one that the run was begun with, or what fits into memory.

    make_model(): (model, machine, forward, image_bytes), see largest_batch. chunk: what a process's part must be a multiple of.
    """
    if cfg.training.batch_size != "auto":
        return cfg
    resume, begun = cfg.training.resume, Path(cfg.logging.run_dir) / "config.yaml"
    if resume not in ("no", "auto"):
        begun = find_run_config(resume)
    elif resume == "no" and not distributed.restarted():
        begun = None
    if begun and begun.is_file():
        size = yaml.safe_load(begun.read_text(encoding="utf-8"))["training"]["batch_size"]
    else:
        fits = (
            min(
                DEFAULT_BATCH_SIZE // distributed.world(),
                *distributed.all_gather_objects(max_batch_size(*make_model())),
            )
            // chunk
            * chunk
        )
        if fits < 1:
            raise MemoryError(
                f"not even the {chunk} images of cutmix.chunk_size fit into memory; use a smaller model.image_size or cutmix.chunk_size"
            )
        size = fits * distributed.world()
        if distributed.rank() == 0:
            print(f"training.batch_size=auto: {size}")
    return changed(schema, cfg, {"training.batch_size": size})
