"""How long something took that may be stopped and called again: the seconds of all its calls, kept in a file."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import write_json


@contextlib.contextmanager
def stopwatch(path: Path, folder: Path, *, resumes: bool = True) -> Iterator[Callable[[], float]]:
    """Time a block, with the seconds of the earlier calls that it goes on from.

    They are kept in `path` however the block ends. A call that was killed counts up to the last step that it logged.

    Args:
        path: a JSON file.
        folder: whose metrics.jsonl, or those below it, are what the block logs.
        resumes: whether the block goes on from earlier calls; they do not count if it does not.

    Yields:
        A function that gives the seconds up to now.
    """
    before = _seconds_before(path, folder) if resumes and path.exists() else 0.0
    began = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - began

    write_json(path, {"seconds": before, "began": time.time()})
    try:
        yield seconds
    finally:
        write_json(path, {"seconds": seconds(), "began": None})


def _seconds_before(path: Path, folder: Path) -> float:
    """The seconds of the earlier calls."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["began"] is None:
        return float(kept["seconds"])
    logged = max((metrics.stat().st_mtime for metrics in folder.rglob("metrics.jsonl")), default=0.0)
    return float(kept["seconds"] + max(0.0, logged - kept["began"]))
