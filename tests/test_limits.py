"""Limits of containers, from trees of files as the kernel documents them.

And work where there is no home, no user and no locale.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, photographs
from PIL import Image

from idmm_fast import limits
from idmm_fast.api import convert
from idmm_fast.models import create_backbone, save_backbone


def fake(folder, cgroup, meminfo_kb=1 << 30, **files):
    """A root with /proc/self/cgroup, /proc/meminfo, and these files (__ for /) under /sys/fs/cgroup."""
    for name, text in {
        "proc/self/cgroup": cgroup,
        "proc/meminfo": f"MemTotal: {2 * meminfo_kb} kB\nMemAvailable: {meminfo_kb} kB\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def at(name):
    return name.replace(".", "_DOT_").replace("/", "__")


V2, V1 = "0::/kube/pod\n", "12:cpu,cpuacct:/docker/abc\n7:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("", {}, 16),
        (V2, {"kube/pod/cpu.max": "max 100000"}, 16),
        (V2, {"kube/pod/cpu.max": "150000 100000"}, 2),
        (V2, {"kube/pod/cpu.max": "max 100000", "kube/cpu.max": "300000 100000"}, 3),
        (
            V2,
            {"kube/pod/cpu.max": "400000 100000", "kube/cpu.max": "1000000 100000", "other/cpu.max": "1000 100000"},
            4,
        ),
        (V2, {"kube/pod/cpu.max": "1000 100000"}, 1),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),  # as seen from inside a container
        (
            V1,
            {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "50000"},
            4,
        ),
        (
            V1,
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),  # the container's own group is mounted as the root
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 16),
        (V1 + V2, {"unified/kube/cpu.max": "500000 100000"}, 5),
    ],
)
def test_cores_are_those_of_the_quota_rounded_up(tmp_path, monkeypatch, cgroup, files, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert limits.cores(fake(tmp_path, cgroup, **{at(k): v for k, v in files.items()})) == cores


@pytest.mark.parametrize(
    ("cgroup", "files", "all_of_it", "free"),
    [
        ("", {}, 64 << 30, 40 << 30),
        (V2, {"kube/pod/memory.max": "max", "kube/pod/memory.current": "5"}, 64 << 30, 40 << 30),
        (V2, {"kube/pod/memory.max": str(8 << 30), "kube/pod/memory.current": str(5 << 30)}, 8 << 30, 3 << 30),
        (
            V2,
            {
                "kube/pod/memory.max": str(8 << 30),
                "kube/pod/memory.current": str(5 << 30),
                "kube/pod/memory.stat": f"anon 5\nfile 9\ninactive_file {2 << 30}\n",
            },
            8 << 30,
            5 << 30,
        ),
        (
            V2,
            {"kube/pod/memory.max": "max", "kube/memory.max": str(1 << 30), "kube/memory.current": str(2 << 30)},
            1 << 30,
            0,
        ),
        (
            V1,
            {
                "memory/docker/abc/memory.limit_in_bytes": "9223372036854771712",
                "memory/docker/abc/memory.usage_in_bytes": "7",
                "memory/docker/memory.limit_in_bytes": str(4 << 30),
                "memory/docker/memory.usage_in_bytes": str(3 << 30),
            },
            4 << 30,
            1 << 30,
        ),
    ],
)
def test_memory_is_the_least_that_is_allowed(tmp_path, monkeypatch, cgroup, files, all_of_it, free):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 24}.__getitem__)
    root = fake(tmp_path, cgroup, 40 << 20, **{at(k): v for k, v in files.items()})
    assert limits.memory_bytes(root) == all_of_it
    assert limits.free_memory(root) == free


def test_of_this_machine_they_are_not_more_than_there_is():
    assert 1 <= limits.cores() <= len(os.sched_getaffinity(0))
    assert 0 < limits.free_memory() <= limits.memory_bytes()


def test_everything_asks_for_these_limits():
    """No module counts the cores or the memory of the whole machine.

    Pinning to certain cores and telling of the machine are other things.
    """
    for path in (ROOT / "idmm_fast").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if str(path.relative_to(ROOT / "idmm_fast")) not in (
            "limits.py",
            "bench/loader.py",
            "bench/machine.py",
            "compare/pool.py",
        ):
            assert not any(
                word in text for word in ("sched_getaffinity", "SC_PHYS_PAGES", "cpu_count", "memory.max")
            ), path


def test_the_cache_is_in_the_home_or_else_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.delenv("IDMM_FAST_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert limits.cache_folder() == tmp_path / "home" / ".cache" / "idmm_fast"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert limits.cache_folder() == tmp_path / f"idmm_fast-{os.getuid()}"
    assert limits.cache_folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / f"idmm_fast-{os.getuid()}").rmdir()
    (tmp_path / f"idmm_fast-{os.getuid()}").symlink_to("/")
    with pytest.raises(OSError, match=r"belongs to somebody else.*IDMM_FAST_CACHE"):
        limits.cache_folder()
    monkeypatch.undo()
    monkeypatch.delenv("IDMM_FAST_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")

    def full():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", full)
    with pytest.raises(
        OSError, match=r"there is no folder for caches: .*No usable temporary directory.*; name one in IDMM_FAST_CACHE"
    ):
        limits.cache_folder()
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "there"))
    assert limits.cache_folder() == tmp_path / "there"


def images(folder):
    """Six images in a folder whose name is not ASCII. The names of one, and of a damaged one, are not even UTF-8."""
    inside = folder / "bilder_ü" / "klasse_é"
    inside.mkdir(parents=True)
    for k, photo in enumerate(photographs(6, seed=5)):
        Image.fromarray(photo).save(inside / f"{k}.jpg")
    os.rename(inside / "5.jpg", os.path.join(os.fsencode(inside), b"\xff.jpg"))
    Path(os.fsdecode(os.path.join(os.fsencode(inside), b"\xfe.jpg"))).write_bytes(b"no image")
    return inside.parent


def run(code, *args, env, **options):
    """What the code prints, run with nothing in the environment but `env`."""
    code = "import os, sys\nfrom pathlib import Path\nimport idmm_fast\nfrom idmm_fast.api import convert\n" + code
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=given,
        capture_output=True,
        cwd=options.pop("cwd", "/"),
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


@pytest.mark.integration
def test_without_locale_and_home(tmp_path, monkeypatch, capsys):
    """Conversion and features of images whose names are not ASCII, with Python's own ASCII locale.

    The files are named as they are, byte for byte.
    """
    folder, trained = images(tmp_path), tmp_path / "run"
    trained.mkdir()
    options = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    save_backbone(create_backbone("vit_tiny_patch16_224", 32, options=options), trained / "backbone.safetensors")
    model = {"name": "vit_tiny_patch16_224", "image_size": 32, "options": options}
    (trained / "config.yaml").write_text(yaml.safe_dump({"model": model, "logging": {"run_dir": str(trained)}}))
    shown = run(
        "features, files = idmm_fast.embed(sys.argv[1], sys.argv[2], 'f.csv')\n"
        "assert features.shape == (6, 32) and all(Path(f).exists() for f in files)\nsys.stdout.flush()\n"
        "sys.stdout.buffer.write(b'\\n'.join(map(os.fsencode, files)))",
        folder,
        trained,
        cwd=tmp_path,
        env={
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "HOME": "/proc/nobody",
            "TMPDIR": str(tmp_path),
        },
    )
    first, *files = shown.split(b"\n")
    assert b"6 images of" in first
    assert b"1 skipped" in first
    wanted = {os.fsencode(p) for p in (folder / "klasse_é").iterdir()} - {
        os.fsencode(folder / "klasse_é") + b"/\xfe.jpg"
    }
    assert set(files) == wanted
    (cache,) = tmp_path.glob(f"idmm_fast-{os.getuid()}/bilder*")
    assert (cache / "train.txt").read_bytes().splitlines() == files
    assert [
        line[1 : 1 + len(name)] for line, name in zip((tmp_path / "f.csv").read_bytes().splitlines(), files)
    ] == files
    assert (
        json.loads((cache / "train.json").read_text())["skipped"][0]["reason"] == "it is not an image that PIL can read"
    )
    monkeypatch.setenv("IDMM_FAST_CACHE", str(cache.parent))
    assert (
        convert(folder)["train"] == cache / "train.beton"
    )  # in the locale of the tests too, and nothing is converted again
    assert capsys.readouterr().out == ""


@pytest.mark.integration
@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_as_a_user_whom_the_machine_does_not_know(tmp_path, request):
    folder, temporary = images(tmp_path), tempfile.mkdtemp()  # pytest's folders are for one user
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    os.chmod(temporary, 0o777)
    # Everything is imported by root, who alone may be allowed to read Python's own files.
    shown = run(
        "os.environ['IDMM_FAST_CACHE'] = sys.argv[2]\nconvert(sys.argv[1])\ndel os.environ['IDMM_FAST_CACHE']\n"
        "os.chdir(sys.argv[1])\n"
        "os.setgroups([])\nos.setgid(54321)\nos.setuid(54321)\nprint(convert('.')['train'])",
        folder,
        tmp_path / "warm",
        env={"TMPDIR": temporary, "LC_ALL": "C.UTF-8"},
    )
    assert f"{temporary}/idmm_fast-54321/bilder_ü".encode() in shown
