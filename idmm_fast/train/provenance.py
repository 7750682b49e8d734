"""Where the numbers of a run come from: starts.jsonl, a line for each start."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import __file__ as PACKAGE
from ..runtime import distributed

_PACKAGES = ("idmm-fast", "torchvision", "timm", "ffcv", "numpy", "numba")


def record_start(path: str | Path, step: int) -> None:
    """Add a line to `path`: when, where and with what the run was started.

    Args:
        path: starts.jsonl.
        step: number of steps done.
    """
    commit, changed = _commit()
    line = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": [sys.executable, *sys.argv],
        "commit": commit,
        "changed": changed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in _PACKAGES},
        },
        "host": platform.node(),
        "processes": distributed.world(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def started_since(path: Path, when: float) -> bool:
    """Whether the last start in the starts.jsonl `path` came after `when` (seconds since 1970), to its two seconds."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["started"]
        return datetime.fromisoformat(last).timestamp() > when - 2
    return False


def launch_time() -> float:
    """When the process that started this one (torchrun) began, in seconds since 1970."""
    ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _commit() -> tuple[str | None, bool | None]:
    """(commit of the project's checkout, whether files differ from it); (None, None) if it is no checkout."""

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", Path(PACKAGE).parent, *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    with contextlib.suppress(OSError):  # git is not installed
        if git("ls-files", "--error-unmatch", PACKAGE):  # else it is a folder that happens to lie in another checkout
            return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    return None, None


def _version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
