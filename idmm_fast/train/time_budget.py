"""Training for a given time: how many steps fit is measured while they run, so that the schedule ends with the time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

UNKNOWN = 1 << 40  # steps, before any was timed
WARMUP = 0.05  # the longest warm-up, as a fraction of the steps
_TIMED_STEPS = 4  # from the first step, which may compile and is not counted, to the first estimate
_SETTLED = 0.03  # in so small a rest of the steps their number stays, so that the learning rate ends at 0

_MINUTES_TO_COMPILE = 10  # compiling takes up to a minute or two


def steps_ahead(training: SimpleNamespace, steps_per_epoch: int) -> int:
    """About how many steps a training has, to decide whether compiling pays; with training.minutes 0 or UNKNOWN.

    Args:
        training: the section `training` of a configuration.
        steps_per_epoch: steps of an epoch.
    """
    if training.minutes:
        return UNKNOWN if training.minutes >= _MINUTES_TO_COMPILE else 0
    return training.epochs * steps_per_epoch


class TimeBudget:
    """Says after how many steps training ends, so that it has taken `minutes` then, with evaluations and checkpoints.

    The estimate is made anew when the steps have doubled, and whenever 2 % of all steps are done. The time of a step is
    that of the last quarter of the steps. Time in which the training does not run does not count.

    Args:
        minutes: of training.
        evaluation_steps: what the last evaluation takes, in steps, as long as none was timed.

    Attributes:
        steps: steps of the whole training, by the last estimate.
    """

    def __init__(self, minutes: float, evaluation_steps: float = 0.0) -> None:
        self.seconds, self.evaluation_steps = 60 * minutes, evaluation_steps
        self.steps = UNKNOWN
        self._before = 0.0  # seconds of earlier parts of the run
        self._lasted: dict[str, float] = {}  # seconds of the last evaluation and checkpoint
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to count time, after `step` steps."""
        self._since, self._aside = time.monotonic(), 0.0
        self._first, self._next = step, step + _TIMED_STEPS
        self._marks: list[tuple[int, float]] = []  # (steps, seconds in them)

    def restart(self, step: int) -> None:
        """Time the steps anew from `step` on: what came before them was none of them."""
        self._before = self.used()
        self.start(step)

    def used(self) -> float:
        """Seconds that the training has run, earlier parts of the run included."""
        return self._before + time.monotonic() - self._since

    def add_aside(self, what: str, since: float) -> None:
        """Count what is no step and began when `used` gave `since`; time for one of each kind is kept at the end."""
        self._lasted[what] = self.used() - since
        self._aside += self._lasted[what]

    def is_due(self, step: int) -> bool:
        """Whether `estimate` is to be called after `step` steps; the same in all processes."""
        if step == self._first + 1:
            self._marks = [(step, self.used() - self._aside)]
        # What was estimated after few steps is not final: they may have been slow ones.
        return step >= self._next and self.steps - step > min(_SETTLED * self.steps, step - self._first)

    def estimate(self, step: int) -> tuple[int, float]:
        """(steps that fit into the time, seconds of a step), after `step` steps."""
        in_steps = self.used() - self._aside
        while len(self._marks) > 1 and 4 * (self._marks[1][0] - self._first) <= 3 * (step - self._first):
            del self._marks[0]
        began, until_then = self._marks[0]
        seconds = (in_steps - until_then) / (step - began)
        self._marks.append((step, in_steps))
        reserve = sum(self._lasted.values())
        if "evaluation" not in self._lasted:
            reserve += self.evaluation_steps * seconds
        left = self.seconds - self.used() - reserve
        return step + max(0, int(left / (seconds + self._aside / (step - self._first)))), seconds

    def plan(self, step: int, steps: int) -> None:
        """Take the steps that the first process has estimated; called in all of them."""
        self.steps = steps
        self._next = min(self._first + 2 * (step - self._first), step + max(1, steps // 50))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"used": self.used(), "steps": self.steps, "lasted": dict(self._lasted)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._before, self.steps, self._lasted = state["used"], state["steps"], dict(state["lasted"])
