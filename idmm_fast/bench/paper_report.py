"""The results of `benchmark.py paper`: written after each stage, added up over calls, as JSON and as Markdown."""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..beton import open_beton
from ..config import ConfigError
from ..files import write_json, write_text
from .machine import describe_machine

COLUMNS = (
    ("minutes", "minutes", "{:.2f}"),
    ("of them compiling", "compile_minutes", "{:.2f}"),
    ("images/s", "images_per_s", "{:,.1f}"),
    ("crops/s", "crops_per_s", "{:,.1f}"),
    ("waited for data", "data_wait", "{:.1%}"),
    ("TFLOP/s", "tflop_per_s", "{:.3g}"),
    ("of torch.mm", "share_of_mm", "{:.0%}"),
    ("of the data sheet", "share_of_datasheet", "{:.0%}"),
    ("peak memory, MB", "peak_memory_mb", "{:,.0f}"),
    ("top-1, %", "top1", "{:.2f}"),
)


class Report:
    """The results so far: paper.json and paper.md in --out, and --json with its .md.

    Args:
        args: The arguments of the benchmark.

    Attributes:
        content: What paper.json holds.

    Raises:
        ConfigError: --out holds results of other arguments.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._paths = [args.out / "paper.json", *([args.json] if args.json else [])]
        settings = {
            "model": args.model,
            "options": args.options,
            "epochs_scale": args.epochs_scale,
            "overrides": sorted(args.override),
            "train": open_beton(args.train).fingerprint,
            "test": open_beton(args.test).fingerprint,
        }
        self.content: dict[str, Any] = {"settings": settings, "calls": [], "parts": {}}
        if self._paths[0].exists():
            try:
                self.content = json.loads(self._paths[0].read_text(encoding="utf-8"))
            except ValueError:
                raise ConfigError(f"{self._paths[0]} is not JSON any more; give another --out") from None
            for key, was in self.content["settings"].items():
                if settings.get(key) != was:
                    raise ConfigError(
                        f"{args.out} was begun with {key}={was}, not {settings.get(key)}; "
                        f"it goes on as it began. Give another --out for other results."
                    )
        self.content |= {"machine": describe_machine(), "conversion_minutes": None}  # betons are given

    def is_done(self, name: str) -> bool:
        """Whether the training `name` is done."""
        return bool(self.content["parts"].get(name, {}).get("done"))

    @contextlib.contextmanager
    def timed(self, calls: list[dict[str, Any]], folder: Path, began: float, **more: Any) -> Iterator[dict[str, Any]]:
        """Time a call, and first close those that were killed: they ended with the last step that they logged.

        Args:
            calls: Earlier ones; the new one is appended.
            folder: Where the metrics.jsonl of what they did are.
            began: time.perf_counter() when this one began.
            more: What else to note of it.

        Yields:
            The new one.
        """
        logged = max((path.stat().st_mtime for path in folder.rglob("metrics.jsonl")), default=0.0)
        for call in calls:
            if not call["ended"]:
                call |= {"ended": True, "killed": True, "seconds": max(call["seconds"], logged - call["began"])}
        call = {"began": time.time() - (time.perf_counter() - began), "seconds": 0.0, "ended": False, **more}
        calls.append(call)
        self.write()
        try:
            yield call
        finally:
            call |= {"ended": True, "seconds": time.perf_counter() - began}
            self.write()

    def write(self) -> None:
        """Write the results so far; the call that runs counts up to now."""
        for call in self.content["calls"]:
            if not call["ended"]:
                call["seconds"] = time.time() - call["began"]
        self.content["minutes"] = minutes_of(self.content["calls"])
        for path in self._paths:
            write_json(path, self.content)
            write_text(path.with_suffix(".md"), self.page())

    def page(self) -> str:
        """The results as Markdown."""
        content, parts = self.content, {k: v for k, v in self.content["parts"].items() if v.get("done")}
        machine, calls = content["machine"], content["calls"]
        killed = sum(call.get("killed", False) for call in calls)
        lines = [
            table(parts),
            "",
            f"- {content['minutes']:.1f} minutes in all, from the first line of the program to the last, in "
            f"{len(calls)} calls, {killed} of them killed (counted up to their last logged step). Conversion is not in "
            "them: the betons were there.",
            f"- {machine['gpu'] or machine['processor']}, {machine['cores']} cores; Python {machine['python']}, "
            + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
            f"- Epochs times {content['settings']['epochs_scale']:g}. Command: `{calls[-1]['command']}`",
        ]
        if {"finetune", "random"} <= set(parts):
            gain = parts["finetune"]["top1"] - parts["random"]["top1"]
            lines.insert(2, f"- Pretraining is worth {gain:+.2f} points of top-1 after fine-tuning.")
        return "\n".join(lines) + "\n"


def minutes_of(calls: list[dict[str, Any]]) -> float:
    """Minutes of all calls together."""
    return sum(call["seconds"] for call in calls) / 60


def table(parts: dict[str, dict[str, Any]]) -> str:
    """The figures of trainings as a Markdown table, a row each; what a training has not is a dash."""
    lines = ["| stage | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in parts.items():
        values = [(found.get(key), form) for _, key, form in COLUMNS]
        cells = ["-" if value is None else form.format(value) for value, form in values]
        what = f"{name}: {found['epochs']} epochs at {found['image_size']} pixels" if "epochs" in found else name
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
