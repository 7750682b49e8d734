"""What a computation runs on: device, precision, memory format, compilation; and how batches get there."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import ConfigError
from ..limits import cache_folder
from . import distributed

Module = TypeVar("Module", bound=nn.Module)

# With up to so many tokens, attention on a CPU is faster multiplied out than by torch's fused kernel, whose backward
# pass is slow there: measured on a Xeon with AMX (benchmark.py step; docs/performance.md).
_MAX_PLAIN_TOKENS = {None: 64, torch.bfloat16: 256}

# Compiling takes about as long as it saves in so many steps. On a GPU it is projected, not measured: 20 to 30 s for a
# graph, 8 to 10 ms a step.
_MIN_STEPS_TO_COMPILE = {"cuda": 3000, "cpu": 200}

_AMP = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The choices made for a run.

    Attributes:
        device: torch's device.
        amp: type of autocast, torch.bfloat16 or torch.float16; None: no autocast.
        channels_last: whether images and weights are in this memory format.
        compile: whether torch.compile is used.
        why_eager: why it is not, where it would be; a part of a sentence.
    """

    device: torch.device
    amp: torch.dtype | None
    channels_last: bool
    compile: bool
    why_eager: str = ""

    def autocast(self) -> AbstractContextManager:
        """The context for forward passes."""
        return nullcontext() if self.amp is None else torch.autocast(self.device.type, self.amp)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler, which does nothing but for float16. Of several processes all skip a step, or none."""
        kind: type[torch.amp.GradScaler] = torch.amp.GradScaler
        if distributed.world() > 1:
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

            kind = ShardedGradScaler
        return kind(self.device.type, enabled=self.amp == torch.float16)

    def to_device(self, module: Module) -> Module:
        """`module` on the device, in the memory format chosen."""
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def prepare(self, module: nn.Module) -> nn.Module:
        """Make the module to call in training.

        Gradients are averaged over the processes, if there are several. Where compilation was chosen, each batch shape
        is compiled once; the result is kept on disk for the next run. See `uncompiled`.
        """
        if distributed.world() > 1:
            # Buffers of normalisation and position embeddings are constant: nothing to send about. Those of batch norms
            # are sent before they count, see Trainer._evaluate.
            ignored = [
                *getattr(module, "_ddp_params_and_buffers_to_ignore", ()),
                *(n for n, _ in module.named_buffers()),
            ]
            module._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]  # DDP's list
            devices = [self.device] if self.device.type == "cuda" else None
            module = DistributedDataParallel(module, devices, gradient_as_bucket_view=True)
        if not self.compile:
            return module
        return cast(nn.Module, torch.compile(module, dynamic=False))

    def __str__(self) -> str:
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"CPU, {torch.get_num_threads()} threads"
        name += f", {distributed.world()} processes" if distributed.world() > 1 else ""
        choices = [{None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.amp]]
        choices += ["channels-last"] * self.channels_last + ["compiled"] * self.compile
        choices += [f"not compiled, since {self.why_eager}"] if self.why_eager else []
        return f"{name}; {', '.join(choices)}"


def resolve_runtime(training: Any, steps: int) -> Runtime:
    """Choose what `auto` leaves open.

    Args:
        training: the section `training` of a configuration, with device, amp, channels_last and compile.
        steps: length of the run, since compiling pays over many steps only.

    Raises:
        ConfigError: training.device or training.amp that this machine can't provide.
    """
    device = training.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    is_cuda = device.type == "cuda"
    if is_cuda and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda, but torch sees no CUDA device; use training.device=cpu or auto")
    if is_cuda:
        torch.set_float32_matmul_precision("high")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    elif torch.get_num_threads() > distributed.cores():  # torch does not know a container's quota
        torch.set_num_threads(distributed.cores())
    pays = steps >= _MIN_STEPS_TO_COMPILE[device.type]
    wanted = pays if training.compile == "auto" else training.compile
    why_eager = _why_eager(device) if wanted else ""
    compile = wanted and not why_eager
    if compile:  # here, before the loader or a loss compiles anything
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    return Runtime(
        device,
        _resolve_amp(training.amp, is_cuda),
        True if training.channels_last == "auto" else training.channels_last,
        compile,
        why_eager,
    )


def allow_graphs(count: int) -> None:
    """Let torch.compile keep so many graphs of one function, one for each shape; it stops at 8 by itself."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(getattr(config, name), count))


def uncompiled(prepared: nn.Module) -> nn.Module:
    """What `Runtime.prepare` made, without compilation: the same weights, averaged over the processes as there."""
    return getattr(prepared, "_orig_mod", prepared)  # torch.compile's wrapper has it


def without_exchange(prepared: nn.Module) -> AbstractContextManager:
    """A context whose backward passes leave the gradients in each process; the first one after it averages all of them.

    Args:
        prepared: what `Runtime.prepare` made; forward passes belong in the context too.
    """
    module = uncompiled(prepared)
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _resolve_amp(amp: str, is_cuda: bool) -> torch.dtype | None:
    """The type of autocast that training.amp stands for."""
    if amp == "fp16" and not is_cuda:
        raise ConfigError("training.amp=fp16 needs a CUDA device; on the CPU use bf16 or fp32")
    if amp != "auto":
        return _AMP[amp]
    if is_cuda:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None


def _why_eager(device: torch.device) -> str:
    """What torch.compile lacks on this machine, as a part of a sentence; "" if nothing."""
    if device.type == "cpu":
        names = [os.environ.get("CXX") or "g++"]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 7:
            return f"Triton needs a GPU of compute capability 7.0, and this one has {major}.{minor}"
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if any(shutil.which(name.split()[0]) for name in names):
        return ""
    return f"there is no compiler ({' or '.join(names)}); on Debian and Ubuntu: apt-get install g++"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16, which is else emulated, many times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_attention(module: nn.Module, runtime: Runtime, largest: int = 0) -> None:
    """On a CPU, switch ViTs with few tokens from torch's fused attention to plain products; the same to rounding.

    timm's attention layers look at their `fused_attn`. Networks with windows or stages (Swin, PVT) stay as they are.

    Args:
        module: the ViTs in it are changed in place.
        runtime: what it runs on.
        largest: side of the largest images, pixels, where they may exceed what the ViTs were made for.
    """
    if runtime.device.type != "cpu":
        return
    network: Any
    for network in module.modules():
        if not hasattr(network, "blocks") or not hasattr(network, "patch_embed"):
            continue
        patch: Any = getattr(network.patch_embed, "patch_size", math.inf)
        patches = (largest // (patch[0] if isinstance(patch, tuple) else patch)) ** 2
        patches = max(patches, getattr(network.patch_embed, "num_patches", math.inf))
        tokens = patches + getattr(network, "num_prefix_tokens", 0)
        for layer in network.blocks.modules() if tokens <= _MAX_PLAIN_TOKENS[runtime.amp] else ():
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = False


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a CUDA device that batches are copied on; one for all epochs, since memory is kept for each."""
    return torch.cuda.Stream(device)


def _record_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event of the work that a stream has by now; a thread that waits for it sleeps, so loader threads may work."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def prefetch_to_device(batches: Iterable[list], device: torch.device) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """Copy each batch to the device while it works on what was launched before, and hand it out at once.

    The device waits for a batch's copy, the host does not. The loader reuses a pinned buffer once no tensor holds it,
    so each batch is held here until its copy is over.

    Args:
        batches: lists of loader.Group.
        device: where they are wanted.

    Yields:
        A list of (images, idx_a, idx_b, lam) on the device, one for each group.
    """
    if device.type != "cuda":
        for batch in batches:
            yield [(g.images, g.idx_a, g.idx_b, g.lam) for g in batch]
        return
    stream = copy_stream(device)
    for batch in batches:
        current = torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            copied = [
                tuple(t.to(device, non_blocking=True) for t in (g.images, g.idx_a, g.idx_b, g.lam)) for g in batch
            ]
        arrived = _record_event(stream)
        current.wait_event(arrived)
        for tensor in itertools.chain.from_iterable(copied):
            tensor.record_stream(current)
        try:
            yield copied
        finally:  # the step that needs it is launched meanwhile; after this the pinned buffers may be reused
            del copied
            arrived.synchronize()
        del batch


class HostCopy:
    """A small tensor on its way to the host: reading it does not wait for what the device is given to do afterwards."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._values, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._values = tensor.to("cpu", non_blocking=True)  # into pinned memory
            self._arrived = _record_event(torch.cuda.current_stream(tensor.device))

    def tolist(self) -> Any:
        """The values, once they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
