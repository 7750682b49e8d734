"""All that training changes, as a tree of tensors and plain values that does not depend on the number of processes."""

import torch

from ..runtime import distributed


def _copied(tree):
    """The tree with every tensor copied to the CPU, so that training may go on while it is written."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


class State:
    """Weights, AdamW's moments, the scaler of fp16, and the random generators of every process.

    A head that is spread over the processes is collected in process 0, so that one file holds everything and any number of
    processes can go on from it.
    """

    def __init__(self, model, optimizer, scaler):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self._spread = getattr(model.head, "spread", False)
        head = {id(p) for p in model.head.parameters()}
        self._head = [
            k for k, p in enumerate(p for group in optimizer.param_groups for p in group["params"]) if id(p) in head
        ]

    def weights(self):
        """{"model": its weights, copied to the CPU}, in process 0; every process must call it. Elsewhere {}."""
        model = self._with_head(self.model.state_dict(), "collect")
        return {} if distributed.rank() else {"model": _copied(model)}

    def take(self):
        """The whole tree, in process 0; every process must call it. Elsewhere {}."""
        optimizer = self._with_moments(self.optimizer.state_dict(), "collect")
        rest = {
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "random": distributed.all_gather_objects(_random_state()),
        }
        return self.weights() | ({} if distributed.rank() else _copied(rest))

    def restore(self, tree):
        """Make everything as it was when the tree was taken."""
        self.model.load_state_dict(self._with_head(tree["model"], "own"))
        self.optimizer.load_state_dict(self._with_moments(tree["optimizer"], "own"))
        if tree["scaler"]:  # of a part in fp32 or bf16 it is empty: fp16 begins anew with its scale
            self.scaler.load_state_dict(tree["scaler"])
        if len(tree["random"]) == distributed.world():
            _set_random_state(tree["random"][distributed.rank()])
        else:  # another number of processes: what the model draws itself (drop path) can't be what it was
            torch.manual_seed(torch.initial_seed() + 1 + distributed.rank())

    def _with_head(self, model, method):
        """A state_dict of the model with the head's tensors as its `method`, "collect" or "own", makes them."""
        if not self._spread:
            return model
        change = getattr(self.model.head, method)
        return {key: change(value) if key.startswith("head.") else value for key, value in model.items()}

    def _with_moments(self, optimizer, method):
        """The same for the optimiser's: AdamW's moments have the shapes of the weights, its counters none."""
        if not self._spread:
            return optimizer
        change, state = getattr(self.model.head, method), dict(optimizer["state"])
        for key in self._head:
            state[key] = {k: change(v) if v.dim() else v for k, v in state[key].items()}
        return {**optimizer, "state": state}


def _random_state():
    """torch's generators, for what the model draws itself (drop path)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state):
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
