"""The processor, and what this process may use: cores, memory, a cache folder.

In a container the limits are those of its control groups.

The argument `root` is the root of the file system, for tests. Source: the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

import math
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def _groups(controller: str, root: str | Path) -> Iterator[Path]:
    """The folders of this process's control group and those above it: of version 2, and of 1 for `controller`."""
    top = Path(root) / "sys/fs/cgroup"
    for line in _text(Path(root) / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        parts = PurePosixPath(path).parts[1:]
        for base in (top / controllers, top / controller) if controllers else (top, top / "unified"):
            yield from (base.joinpath(*parts[:k]) for k in range(len(parts), -1, -1))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # this version, or this controller, is not there
        return ""


def _numbers(path: Path) -> list[float]:
    """The whole numbers of a file, [] if it is not there; "max" and -1 mean no limit and are infinite."""
    return [math.inf if word in ("max", "-1") else int(word) for word in _text(path).split()]


def processor(root: str | Path = "/") -> str:
    """The model name of the CPU, where Linux tells it."""
    lines = _text(Path(root) / "proc/cpuinfo").splitlines()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def cores(root: str | Path = "/") -> int:
    """How many threads can run at once: the cores this process may run on, or its control groups' quota, rounded up."""
    found = [len(os.sched_getaffinity(0))]
    for group in _groups("cpu", root):
        for quota in (
            _numbers(group / "cpu.max"),
            _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us"),
        ):
            if len(quota) == 2 and quota[0] < math.inf:
                found.append(math.ceil(quota[0] / quota[1]))
    return max(1, min(found))


def memory_bytes(root: str | Path = "/") -> float:
    """The memory of the machine, or of this process's control groups, in bytes."""
    found: list[float] = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root):
        found += _numbers(group / "memory.max") + _numbers(group / "memory.limit_in_bytes")
    return min(found)


def free_memory(root: str | Path = "/") -> float:
    """How much of that memory can still be taken, in bytes. Cached content of files counts as free."""
    status = dict(line.split(":", 1) for line in _text(Path(root) / "proc/meminfo").splitlines())
    found: list[float] = [
        int(status["MemAvailable"].split()[0]) << 10 if "MemAvailable" in status else memory_bytes(root)
    ]
    for group in _groups("memory", root):
        cached = dict(line.split() for line in _text(group / "memory.stat").splitlines())
        for most, used, key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _numbers(group / most), _numbers(group / used)
            if limit and usage and limit[0] < math.inf:
                found.append(limit[0] - usage[0] + int(cached.get(key, 0)))
    return max(0, min(found))


def cache_folder() -> Path:
    """The folder for caches: $IDMM_FAST_CACHE, else ~/.cache/idmm_fast, else one among the temporary files.

    Raises:
        OSError: none of them can be written.
    """
    if os.environ.get("IDMM_FAST_CACHE"):
        return Path(os.environ["IDMM_FAST_CACHE"])
    try:
        folder = Path.home() / ".cache" / "idmm_fast"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor an entry in the list of users
        pass
    try:
        folder = Path(tempfile.gettempdir()) / f"idmm_fast-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # compiled code is run from here
            raise PermissionError(f"{folder} belongs to somebody else")
    except OSError as error:
        raise OSError(
            f"there is no folder for caches: no home, and no temporary folder ({error}); name one in IDMM_FAST_CACHE"
        ) from error
    return folder
