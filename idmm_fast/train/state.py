"""All that training changes, as a tree of tensors and plain values that does not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..runtime import distributed


def _copied(tree: Any) -> Any:
    """The tree with every tensor copied to the CPU, so that training may continue while it is written."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


class TrainState:
    """Weights, the optimisers' moments, the scaler of fp16, and the random generators of every process.

    A head that is sharded over the processes is gathered in process 0, so that one file holds everything and any
    number of processes can resume from it.

    Args:
        model: a module with a `head`.
        optimizers: the optimisers of its weights; the first one has the head.
        scaler: a torch.amp.GradScaler.
        average: the moving average of the model, where there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        average: nn.Module | None = None,
    ) -> None:
        self.model, self.scaler, self.average = model, scaler, average
        self.optimizer, *self.others = optimizers
        self._is_sharded = getattr(model.head, "is_sharded", False)
        head = {id(p) for p in model.head.parameters()}  # type: ignore[union-attr]
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        self._head_indices = [k for k, p in enumerate(parameters) if id(p) in head]

    def weights(self) -> dict[str, Any]:
        """{"model": its weights, copied to the CPU} in process 0, elsewhere {}; every process must call it.

        With a moving average its weights are there too, as "average".
        """
        weights = {"model": self._with_head(self.model.state_dict(), "gather_full")}
        if self.average is not None:
            weights["average"] = self.average.state_dict()
        return {} if distributed.rank() else _copied(weights)

    def state_dict(self) -> dict[str, Any]:
        """The whole tree in process 0, elsewhere {}; every process must call it."""
        rest = {
            "optimizer": self._with_moments(self.optimizer.state_dict(), "gather_full"),
            **({"other_optimizers": [optimizer.state_dict() for optimizer in self.others]} if self.others else {}),
            "scaler": self.scaler.state_dict(),
            "random": distributed.all_gather_objects(_random_state()),
        }
        return self.weights() | ({} if distributed.rank() else _copied(rest))

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Make everything as it was when `tree` was taken by `state_dict`."""
        self.model.load_state_dict(self._with_head(tree["model"], "local_shard"))
        if self.average is not None:
            self.average.load_state_dict(tree["average"])
        self.optimizer.load_state_dict(self._with_moments(tree["optimizer"], "local_shard"))
        for optimizer, state in zip(self.others, tree.get("other_optimizers", ())):
            optimizer.load_state_dict(state)
        if tree["scaler"]:  # empty if that part ran in fp32 or bf16: fp16 then begins with its first scale
            self.scaler.load_state_dict(tree["scaler"])
        if len(tree["random"]) == distributed.world():
            _set_random_state(tree["random"][distributed.rank()])
        else:  # another number of processes: what the model draws itself (drop path) can't be what it was
            torch.manual_seed(torch.initial_seed() + 1 + distributed.rank())

    def _with_head(self, model: dict[str, torch.Tensor], method: str) -> dict[str, torch.Tensor]:
        """A state_dict of the model whose head has gone through `method` of the head."""
        if not self._is_sharded:
            return model
        change = getattr(self.model.head, method)
        return {key: change(value) if key.startswith("head.") else value for key, value in model.items()}

    def _with_moments(self, optimizer: dict[str, Any], method: str) -> dict[str, Any]:
        """The same for the optimizer's: AdamW's moments have the shapes of the weights, its counters none."""
        if not self._is_sharded:
            return optimizer
        change, state = getattr(self.model.head, method), dict(optimizer["state"])
        for key in self._head_indices:
            state[key] = {k: change(v) if v.dim() else v for k, v in state[key].items()}
        return {**optimizer, "state": state}


def _random_state() -> dict[str, torch.Tensor]:
    """torch's generators, for what the model draws itself (drop path)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
