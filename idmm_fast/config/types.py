"""Types of configuration values: each checks a value, and says in `help` what it takes.

fastargs reads the string "false" as true and 1.5 as the integer 1; these checkers refuse both.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fastargs.validation import Checker

# How a value is read that was typed on a command line: the attribute `typed` of its type. Values of types without one
# are YAML: lists, mappings, true and false.
_NONE = ("", "~", "null")


def as_text(typed: str) -> str | None:
    """The text itself, whatever YAML would make of it: a date, a number with a leading zero, what follows a #."""
    return None if typed.lower() in _NONE else typed


def as_number(typed: str) -> int | float | str | None:
    """A number, decimal: 010 is ten; what is no number stays text."""
    for kind in (int, float):
        try:
            return kind(typed)
        except ValueError:
            continue
    return as_text(typed)


class Int(Checker):
    """A whole number in low..high."""

    typed = staticmethod(as_number)

    def __init__(self, low: int, high: int = 2**63 - 1) -> None:
        self.low, self.high = low, high

    def check(self, value: Any) -> Any:
        if isinstance(value, bool) or int(value) != float(value) or not self.low <= int(value) <= self.high:
            raise ValueError
        return int(value)

    def help(self) -> str:
        if self.high > 2**60:
            return f"a whole number of at least {self.low}"
        return f"a whole number in {self.low}..{self.high}"


class BatchSize(Int):
    """A whole number, or auto."""

    def check(self, value: Any) -> Any:
        return value if value == "auto" else super().check(value)

    def help(self) -> str:
        return "a whole number of at least 1, or auto"


class Float(Checker):
    """A number in low..high."""

    typed = staticmethod(as_number)

    def __init__(self, low: float, high: float = float("inf")) -> None:
        self.low, self.high = low, high

    def check(self, value: Any) -> float:
        if isinstance(value, bool) or not self.low <= float(value) <= self.high or math.isinf(float(value)):
            raise ValueError
        return float(value)

    def help(self) -> str:
        if self.high == float("inf"):
            return f"a number of at least {self.low}"
        return f"a number in {self.low}..{self.high}"


class Bool(Checker):
    """True or false."""

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def help(self) -> str:
        return "true or false"


class Choice(Checker):
    """One of several values; true is not 1."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices

    def check(self, value: Any) -> Any:
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices):
            raise ValueError
        return value

    def help(self) -> str:
        return "one of " + ", ".join(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices)


AUTO = Choice("auto", True, False)


class Str(Checker):
    """Text."""

    typed = staticmethod(as_text)

    def check(self, value: Any) -> str:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError
        return str(value)

    def help(self) -> str:
        return "text"


class Derived(Str):
    """Text, or auto: what `derive` makes of the rest of the configuration."""

    def __init__(self, derive: Callable[[SimpleNamespace], str]) -> None:
        self.derive = derive

    def help(self) -> str:
        return "text, or auto"


class Resume(Str):
    """no, auto or a path; YAML reads the bare word no as false."""

    def check(self, value: Any) -> str:
        is_no = value is False or (isinstance(value, str) and value.lower() in ("no", "false", "off"))
        return "no" if is_no else super().check(value)


class Range(Checker):
    """Two numbers [low, high] within low..high."""

    def __init__(self, low: float = float("-inf"), high: float = float("inf")) -> None:
        self.low, self.high = low, high

    def check(self, value: Any) -> list[float]:
        low, high = value
        if not self.low <= float(low) <= float(high) <= self.high or math.isinf(float(high) - float(low)):
            raise ValueError
        return [float(low), float(high)]

    def help(self) -> str:
        return "a range [low, high]" + (f" within {self.low}..{self.high}" if self.high < float("inf") else "")


class Channels(Checker):
    """A number in low..1 for each of red, green and blue."""

    def __init__(self, low: float) -> None:
        self.low = low

    def check(self, value: Any) -> list[float]:
        numbers = [float(x) for x in value]
        if isinstance(value, str) or len(numbers) != 3 or not all(self.low <= x <= 1 for x in numbers):
            raise ValueError
        return numbers

    def help(self) -> str:
        return f"[red, green, blue], numbers in {self.low:g}..1"


class Mapping(Checker):
    """{name: value}."""

    def check(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError
        return value

    def help(self) -> str:
        return "a mapping {name: value}"


class Stages(Checker):
    """Changes to a configuration, one set after another: [{training.epochs: 800}, {model.image_size: 448, ...}]."""

    def check(self, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(
            isinstance(stage, dict) and all("." in str(key) for key in stage) for stage in value
        ):
            raise ValueError
        return value

    def help(self) -> str:
        return "a list of stages like [{training.epochs: 800}, {model.image_size: 448}]"


class CropGroups(Checker):
    """Groups of crops: [{count: 2, scale: [0.14, 1.0]}, ...], each with an optional size in pixels."""

    _KEYS: dict[str, Checker] = {"count": Int(1, 64), "scale": Range(), "size": Int(8, 4096)}

    def check(self, value: Any) -> list[dict[str, Any]]:
        groups = [dict(group) for group in value]
        if not groups or not all({"count", "scale"} <= set(group) <= set(self._KEYS) for group in groups):
            raise ValueError
        return [
            {key: checker.check(group[key]) for key, checker in self._KEYS.items() if key in group} for group in groups
        ]

    def help(self) -> str:
        return "a list of groups like [{count: 2, scale: [0.14, 1.0]}]"


class CropSchedule(Checker):
    """Sizes of crops over a run: [{from: 0, size: 64}, {from: 0.5, size: [112, 64]}]: of all groups, or of each."""

    _MOST = 7  # with those of the groups 8, as many as torch.compile keeps graphs of

    def check(self, value: Any) -> list[dict[str, Any]]:
        steps = [dict(step) for step in value]
        if len(steps) > self._MOST or not all(set(step) == {"from", "size"} for step in steps):
            raise ValueError
        size = Int(8, 4096)
        steps = [
            {
                "from": Float(0, 1).check(step["from"]),
                "size": [size.check(s) for s in step["size"]]
                if isinstance(step["size"], list)
                else size.check(step["size"]),
            }
            for step in steps
        ]
        begins = [step["from"] for step in steps]
        if any(later <= earlier for earlier, later in zip(begins, [*begins[1:], 1.0])):
            raise ValueError
        return steps

    def help(self) -> str:
        return f"a list like [{{from: 0, size: 64}}, {{from: 0.5, size: 112}}], ascending, of {self._MOST} at most"
