"""A CUDA device that is not there: every operation with its shapes, types and devices, but without numbers.

Tensors are torch's FakeTensor on cuda:0, which refuses operands of two devices. What makes the host wait for the device
raises HostSync; launches are counted. Source of what waits: CUDA's "API synchronization behavior".
"""

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
SMALL_COPY = 64 << 10  # bytes: the driver copies so few from pageable memory without waiting
A_STEP = 100  # launches: what was asked for so many ago is not part of the step just launched
_WAITING = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "repeat_interleave",
}
_NO_LAUNCH = {
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "is_pinned",
    "lift_fresh",
}
_NO_LAUNCH |= {"record_stream", "set_", "resize_", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset"}


class HostSync(AssertionError):
    """The host waits for the device here."""


class Watch(TorchDispatchMode):
    """Raises HostSync where the host would wait.

    Attributes:
        launches: operations on the device so far.
        copies: copies between host and device so far.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.copies = 0, 0
        self.stream, self._pinned = _Stream(self, computes=True), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = [a for a in _flat((args, kwargs)) if isinstance(a, torch.Tensor)]
        on_device = any(t.is_cuda for t in tensors)
        if name == "is_pinned":
            return self.is_pinned(args[0])
        if name == "_pin_memory":
            return self._pin(torch.empty_like(args[0]))
        if name == "_local_scalar_dense" and not on_device:
            return 0.0 if args[0].is_floating_point() else 0  # a number that has arrived on the host
        if name == "record_stream":
            return None
        if on_device and name in _WAITING:
            raise HostSync(f"{name} of a tensor on the device")
        if name in ("index", "index_put", "index_put_", "_unsafe_index") and on_device:
            self._check_index(name, args)
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            target, source = (result, args[0]) if name == "_to_copy" else args[:2]
            asynchronous = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
            self._check_copy(name, target, source, asynchronous)
        if kwargs.get("pin_memory"):
            self._pin(result)
        is_made = any(t.is_cuda for t in _flat(result) if isinstance(t, torch.Tensor))
        if (on_device or is_made) and not func.is_view and name not in _NO_LAUNCH:
            self.launches += 1
        return result

    def is_pinned(self, tensor):
        """Whether a tensor is on memory that was made pinned."""
        return tensor.device.type == "cpu" and any(
            tensor.untyped_storage()._cdata == t.untyped_storage()._cdata for t in self._pinned
        )

    def _pin(self, tensor):
        self._pinned.append(tensor)
        return tensor

    def _check_index(self, name, args):
        for index in args[1]:
            if isinstance(index, torch.Tensor) and not index.is_cuda:
                raise HostSync(f"{name} with an index on the {index.device.type}, which is copied")
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                raise HostSync(f"{name} with a mask, whose size the host must know")

    def _check_copy(self, name, target, source, asynchronous):
        if target.is_cuda == source.is_cuda:
            return
        self.copies += 1
        to, host = ("device", source) if target.is_cuda else ("host", target)
        small = to == "device" and host.numel() * host.element_size() <= SMALL_COPY
        if not asynchronous:
            raise HostSync(f"a copy to the {to} that is not non_blocking, of {tuple(source.shape)}")
        if to == "host" and name == "_to_copy":
            self._pin(target)  # torch pins what it makes for such a copy (aten/native/TensorConversions.cpp)
        if not (small or self.is_pinned(host)):
            raise HostSync(f"a copy to the {to} from or to memory that is not pinned, of {tuple(source.shape)}")


def _flat(tree):
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return [tree]
    return [leaf for part in tree for leaf in _flat(part)]


class _Event:
    def __init__(self, watch):
        self.watch, self.stream, self.at = watch, None, 0

    def record(self, stream=None):
        self.stream, self.at = stream or self.watch.stream, self.watch.launches

    def wait(self, stream=None):
        (stream or self.watch.stream).wait_event(self)

    def query(self):
        return self.stream is None or not self.stream.computes or self.watch.launches - self.at >= A_STEP

    def synchronize(self):
        if not self.query():
            raise HostSync("an event that comes after the step just launched is waited for")


class _Stream:
    """Operations are launched on `watch.stream`; a stream that waits for nothing of it holds copies alone."""

    def __init__(self, watch, computes=False):
        self.watch, self.computes = watch, computes

    def record_event(self, event=None):
        event = event or _Event(self.watch)
        event.record(self)
        return event

    def wait_event(self, event):
        self.wait_stream(event.stream)

    def wait_stream(self, stream):
        self.computes |= stream.computes

    def synchronize(self):
        if self.computes:
            raise HostSync("the stream that computes is waited for")


def _refuse(*args):
    raise HostSync("torch.cuda.synchronize")


@contextlib.contextmanager
def fake_cuda(monkeypatch):
    """A block in which cuda:0 is there; gives the Watch. `to_fake` brings modules and tensors there."""
    watch = Watch()
    with monkeypatch.context() as patch, FakeTensorMode(), watch:
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda *args, **options: True)
        patch.setattr("torch.cuda.Event", lambda *args, **options: _Event(watch))
        patch.setattr("idmm_fast.runtime.device.copy_stream", lambda device: _Stream(watch))
        patch.setattr("torch.cuda.Stream", lambda *args, **options: _Stream(watch))
        patch.setattr("torch.cuda.current_stream", lambda *args: watch.stream)
        patch.setattr("torch.cuda.stream", lambda *args: contextlib.nullcontext())
        patch.setattr("torch.cuda.synchronize", _refuse)
        patch.setattr("torch.Tensor.backward", backward)
        patch.setattr("torch.Tensor.record_stream", lambda *args: None)
        yield watch


def to_fake(thing, device=DEVICE):
    """A tensor's likeness on the fake device; a module whose weights are replaced by theirs, in place."""
    if isinstance(thing, torch.Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device=device)
    made = {}
    for module in thing.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    fake = to_fake(tensor, device)
                    made[tensor] = (
                        torch.nn.Parameter(fake, tensor.requires_grad) if tensors is module._parameters else fake
                    )
                tensors[name] = made[tensor]
    return thing


def backward(loss, gradient=None):
    """`loss.backward()` by calling the graph's nodes: torch's own engine asks the driver for streams."""
    order, seen, stack = [], set(), [(loss.grad_fn, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [
                (node, True),
                *((following, False) for following, _ in node.next_functions if following is not None),
            ]
    waiting = {node: [None] * len(node._input_metadata) for node in order}
    waiting[loss.grad_fn][loss.output_nr] = torch.ones_like(loss) if gradient is None else gradient
    with torch.no_grad():
        for node in reversed(order):
            _run_node(node, waiting)


def _run_node(node, waiting):
    gradients = waiting.pop(node)
    if all(g is None for g in gradients):
        return
    if hasattr(node, "variable"):
        leaf, (gradient,) = node.variable, gradients
        assert gradient.device == leaf.device
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return
    is_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    results = node.apply(*gradients) if is_python else node(*gradients)
    for (following, place), result in zip(node.next_functions, results if isinstance(results, tuple) else (results,)):
        if following is None or result is None:
            continue
        meta = following._input_metadata[place]
        assert result.device == meta.device, f"{node.name()} gives {result.device}, wanted is {meta.device}"
        result = result.sum_to_size(meta.shape).to(meta.dtype)
        held = waiting[following][place]
        waiting[following][place] = result if held is None else held + result
