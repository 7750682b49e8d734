"""What several test files share: photographs, a tiny model's configuration, scripts in this process or as commands."""

import contextlib
import hashlib
import importlib.util
import io
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from idmm_fast.config import load_yaml, make_config
from idmm_fast.config.finetune import SCHEMA as FINETUNE
from idmm_fast.config.pretrain import SCHEMA as PRETRAIN

ROOT = Path(__file__).parent.parent
TINY_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY_METHODS = {
    "simclr": {"hidden": 16, "dim": 8},
    "supcon": {"hidden": 16, "dim": 8},
    "moco_v2": {"hidden": 16, "dim": 8, "momentum": 0.9},
    "moco_v3": {"hidden": 16, "dim": 8},
    "dino": {"hidden": 16, "bottleneck": 8, "outputs": 32, "momentum": 0.9},
}
TINY_OPTIONS = {"hidden": 64, "dim": 8, "bottleneck": 8, "outputs": 32, "momentum": 0.9}


def photographs(count, seed=0, low=90, high=260):
    """`count` different windows of scikit-learn's two photographs, uint8 (H, W, 3), of random size and shape."""
    from sklearn.datasets import load_sample_images

    sources = load_sample_images().images
    rng = np.random.default_rng(seed)
    result = []
    for k in range(count):
        source = sources[k % len(sources)]
        h, w = rng.integers(low, high, 2)
        top, left = rng.integers(0, source.shape[0] - h), rng.integers(0, source.shape[1] - w)
        result.append(np.ascontiguousarray(source[top : top + h, left : left + w]))
    return result


def corrupt_row(path, target, row, how):
    """A copy of the FFCV dataset `path` as `target`, with one image spoilt: "noise", or "half" (then zeros)."""
    from idmm_fast.beton import open_beton

    shutil.copy(path, target)
    beton = open_beton(target)
    start, length = int(beton.ptr[row]), int(beton.length[row])
    with open(target, "r+b") as file:
        if how == "noise":
            file.seek(start)
            file.write(os.urandom(length))
        else:
            file.seek(start + length // 2)
            file.write(bytes(length - length // 2))
    return target


_FFCV_WRITER = """
import multiprocessing
import sys
import numpy as np
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.writer import DatasetWriter

multiprocessing.set_start_method("fork", force=True)  # as in a process that was not forked itself

class Rows:
    def __init__(self, images):
        self.images = images
    def __len__(self):
        return len(self.images)
    def __getitem__(self, i):
        return 0.5 * i, self.images[i], 99 - i, i

for path in sys.argv[1:]:
    rows = Rows(list(np.load(f"{path}.npz").values()))
    image = RGBImageField(write_mode="raw")
    fields = {"score": FloatField(), "image": image, "number": IntField(), "label": IntField()}
    DatasetWriter(f"{path}.beton", fields, num_workers=1).from_indexed_dataset(rows)
"""


def write_with_ffcv(folder, **images):
    """Write lists of images as folder/NAME.beton with FFCV's own writer, which forks: in a process of its own."""
    for name, photos in images.items():
        np.savez(folder / f"{name}.npz", *photos)
    run_forked(folder, _FFCV_WRITER, *(folder / name for name in images))


def tiny_config(beton, folder, schema=PRETRAIN, **values):
    """The configuration of a run of seconds; `training__lr=1` or `**{"training.lr": 1}` sets a key."""
    tiny = {
        "data.train": str(beton),
        "model.name": "vit_tiny_patch16_224",
        "model.options": TINY_VIT,
        "model.image_size": 32,
        "training.epochs": 4,
        "training.batch_size": 16,
        "training.lr": 2e-3,
        "training.warmup_epochs": 1,
        "training.amp": "fp32",
        "training.compile": False,
        "training.checkpoint_every": 1,
        "logging.run_dir": str(folder),
    }
    if schema is FINETUNE:
        tiny |= {"data.test": str(beton), "training.evaluate_every": 0}
    return make_config(schema, tiny | {k.replace("__", "."): v for k, v in values.items()})


def tiny_options(name):
    """Small values for the options of the method `name`: those of TINY_METHODS, or of whichever TINY_OPTIONS it has."""
    from idmm_fast.methods import options_of

    return TINY_METHODS.get(name) or {k: v for k, v in TINY_OPTIONS.items() if k in options_of(name)}


def method_values(name, **more):
    """The keys that make tiny_config one of the method `name`."""
    values = load_yaml(PRETRAIN, ROOT / "rn_configs" / "methods" / f"{name}.yaml")
    tiny = {
        "method.options": tiny_options(name) if name != "instance" else {},
        "training.epochs": 3,
        "training.warmup_epochs": 1,
        "training.batch_size": 16,
        "training.lr": 2e-3,
        "model.drop_path": 0.0,
    }
    return {k.replace(".", "__"): v for k, v in (values | tiny | more).items()}


def read_losses(folder):
    """The loss of every step of a run, float64 (steps,)."""
    from idmm_fast.plots.curves import read_metrics

    return read_metrics(folder)["loss"]


def remove_later_checkpoints(folder, epoch):
    """Take a run back to its state after `epoch` epochs; metrics keep their later lines, as after a kill."""
    from idmm_fast.train import checkpoint

    for path in checkpoint.listing(folder / "checkpoints"):
        if int(path.stem.split("_")[1]) >= epoch:
            path.unlink()


def run_script(script, *args):
    """Run a script of the top level in this process: a subprocess.CompletedProcess, as if it had one of its own."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            module.main([str(a) for a in args])
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess([script, *args], code or 0, out.getvalue(), err.getvalue())


class ForkedScript:
    """A script in a process of its own, with Popen's interface, started in a second instead of five.

    It is forked from a process that has imported torch and what takes as long, but not numba: LLVM's state does not
    survive a fork (multiprocessing's forkserver, as in compare/pool.py).

    Args:
        script: path of the script; then its arguments.
        env: what is set in its environment besides this process's.
    """

    def __init__(self, script, *args, env=()):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "timm", "sklearn.pipeline", "matplotlib.figure"])
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._output = Path(file.name)
        given = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env)
        self._process = context.Process(target=_run_forked, args=([str(script), *map(str, args)], given, self._output))
        self._process.start()
        self._said = ""
        self.pid = self._process.pid
        self.kill = self._process.kill

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=120):
        """Its exit status, minus the signal's number if one ended it. Raises TimeoutExpired, and kills it then."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        if self._output.exists():
            self._said = self._output.read_text()
            self._output.unlink()
        return self.returncode

    def communicate(self, timeout=120):
        """Wait, then what it printed and wrote to stderr, together."""
        self.wait(timeout)
        return self._said


def run_forked(folder, code, *args, env=(), timeout=280):
    """What Python code prints that runs in a process of its own, as `ForkedScript` does; it is written to `folder`."""
    script = folder / "code.py"
    script.write_text(code)
    process = ForkedScript(script, *args, env=env)
    said = process.communicate(timeout)
    assert process.returncode == 0, said[-3000:]
    return said


def _run_forked(argv, environment, output):
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def start_ranks(count, script, env=(), args=()):
    """The processes of a job on this machine as torchrun starts them, without torchrun, which ends all if one ends.

    env: called with the rank, what is set besides or instead in its environment. args: of the script.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    job |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) | dict(env(rank) if env else {}) for rank in range(count)]
    return [ForkedScript(script, *args, env=job | rank) for rank in ranks]


def train_command(beton, folder):
    """The command line of a pretraining of 8 epochs of 16 steps, in a process of its own, that resumes."""
    return [
        sys.executable,
        str(ROOT / "train_idmm.py"),
        f"--data.train={beton}",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT}",
        "--model.image_size=32",
        "--training.batch_size=4",
        "--training.epochs=8",
        "--training.amp=fp32",
        "--training.compile=false",
        "--training.lr=1e-3",
        "--training.device=cpu",
        "--training.resume=auto",
        f"--logging.run_dir={folder}",
    ]


def torchrun_command(processes, beton, folder, *args, script="train_idmm.py", restarts=0):
    """The command line of a tiny run on so many processes of this machine."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
        str(ROOT / script),
        f"--data.train={beton}",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT}",
        "--model.image_size=32",
        "--training.warmup_epochs=1",
        "--training.amp=fp32",
        "--training.compile=false",
        "--training.lr=2e-3",
        "--training.device=cpu",
        f"--logging.run_dir={folder}",
        *map(str, args),
    ]


def digest(batches):
    """SHA-256 of pixels, rows and mixing of all groups of these batches, each a list of groups."""
    result = hashlib.sha256()
    for batch in batches:
        for g in batch:
            for t in (g.images.permute(0, 2, 3, 1), g.idx_a, g.idx_b, g.lam):
                result.update(t.numpy().tobytes())
    return result.hexdigest()
