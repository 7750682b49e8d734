"""What the machine can do: device, precision, memory format, compilation, and getting batches there."""

import math
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from ..config import ConfigError
from ..limits import cache_folder
from . import distributed


@dataclass(frozen=True)
class Runtime:
    """The choices made for a run. amp: None, torch.bfloat16 or torch.float16."""

    device: torch.device
    amp: torch.dtype | None
    channels_last: bool
    compile: bool

    def autocast(self):
        return nullcontext() if self.amp is None else torch.autocast(self.device.type, self.amp)

    def scaler(self):
        """A gradient scaler; it does nothing but for float16. Of several processes all skip a step, or none."""
        kind = torch.amp.GradScaler
        if distributed.world() > 1:
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler as kind
        return kind(self.device.type, enabled=self.amp == torch.float16)

    def place(self, module):
        """`module` on the device, in the memory format chosen."""
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def prepare(self, module):
        """The module to call in training: gradients averaged over the processes, if there are several; compiled, if that was chosen.

        Each batch shape is compiled for itself, once; what was compiled is kept on disk for the next run.
        """
        if distributed.world() > 1:
            constant = [name for name, _ in module.named_buffers()]  # normalisation, sinusoids: nothing to send about
            module._ddp_params_and_buffers_to_ignore = [
                *getattr(module, "_ddp_params_and_buffers_to_ignore", ()),
                *constant,
            ]
            module = DistributedDataParallel(
                module, [self.device] if self.device.type == "cuda" else None, gradient_as_bucket_view=True
            )
        if not self.compile:
            return module
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        return torch.compile(module, dynamic=False)

    def __str__(self):
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        name += f", {distributed.world()} processes" if distributed.world() > 1 else ""
        precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.amp]
        return f"{name}; {precision}{', channels-last' if self.channels_last else ''}{', compiled' if self.compile else ''}"


# Tokens up to which, on a CPU, attention is faster multiplied out than by torch's fused kernel, whose backward pass is slow there: measured
# on a Xeon with AMX (benchmark.py step; docs/performance.md).
_PLAIN_TOKENS = {None: 64, torch.bfloat16: 256}


def choose_attention(module, machine):
    """On a CPU, switch the ViTs in `module` with few tokens from torch's fused attention to plain products; the same to rounding.

    timm's attention layers look at their `fused_attn`. Networks with windows or stages (Swin, PVT) are left as they are.
    """
    if machine.device.type != "cpu":
        return
    for network in module.modules():
        if not hasattr(network, "blocks") or not hasattr(network, "patch_embed"):
            continue
        tokens = getattr(network.patch_embed, "num_patches", math.inf) + getattr(network, "num_prefix_tokens", 0)
        for layer in network.blocks.modules() if tokens <= _PLAIN_TOKENS[machine.amp] else ():
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = False


def cpu_has_bf16():
    """Whether the CPU has instructions for it; without them bf16 is emulated, many times slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose(training, steps):
    """Machine from the `training` section; `steps` is the length of the run, since compiling pays only over many."""
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if training.device == "auto" else training.device
    )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device=cuda, but torch sees no CUDA device; use training.device=cpu or auto")
    cuda = device.type == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    elif torch.get_num_threads() > distributed.cores():  # torch does not know a container's quota
        torch.set_num_threads(distributed.cores())
    amp = training.amp
    if amp == "auto":
        if cuda:
            amp = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            amp = "bf16" if cpu_has_bf16() else "fp32"
    if amp == "fp16" and not cuda:
        raise ConfigError("training.amp=fp16 needs a CUDA device; on the CPU use bf16 or fp32")
    can_compile = cuda or shutil.which("g++") is not None
    compiled = can_compile and steps >= 200 if training.compile == "auto" else training.compile
    return Runtime(
        device,
        {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp],
        True if training.channels_last == "auto" else training.channels_last,
        compiled,
    )


def to_device(batches, device):
    """The batches (lists of Group) as lists of (images, idx_a, idx_b, lam) on `device`, copied while the one before is used.

    The loader reuses a pinned buffer once no tensor holds it, so each is held here until its copy is known to be over.
    """
    if device.type != "cuda":
        for batch in batches:
            yield [(g.images, g.idx_a, g.idx_b, g.lam) for g in batch]
        return
    stream = torch.cuda.Stream(device)
    ready = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = [
                tuple(t.to(device, non_blocking=True) for t in (g.images, g.idx_a, g.idx_b, g.lam)) for g in batch
            ]
        event = stream.record_event()
        if ready is not None:
            yield _arrived(*ready, device)
        ready = (copied, event, batch)
    if ready is not None:
        yield _arrived(*ready, device)


def _arrived(copied, event, batch, device):
    current = torch.cuda.current_stream(device)
    current.wait_event(event)
    event.synchronize()  # the copy began a whole step ago; after this the pinned source may be reused
    del batch
    for group in copied:
        for tensor in group:
            tensor.record_stream(current)
    return copied
