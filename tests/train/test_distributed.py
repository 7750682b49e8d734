"""Several processes, as torchrun starts them: the same crops and curve as one process; what happens when one dies."""

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FINETUNE, ROOT, TINY_VIT, read_losses, start_ranks, tiny_config, torchrun_command

from idmm_fast.beton import open_beton
from idmm_fast.config import ConfigError
from idmm_fast.evaluate import EvaluationImages
from idmm_fast.evaluate.accuracy import top_k
from idmm_fast.models import Classifier, create_backbone, init_head
from idmm_fast.runtime import distributed
from idmm_fast.runtime.device import resolve_runtime
from idmm_fast.train import checkpoint
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.state import TrainState

# 64 images: a step of 36, then one of 28, which two processes share as 15 and 13, four as 6, 9, 6 and 7
CASE = {"training__batch_size": 36, "cutmix__chunk_size": 3, "training__epochs": 10}


def train(processes, beton, folder, *args, torchrun=True, **options):
    """What a training of so many processes printed. Without torchrun they start in a second each."""
    values = ["--training.batch_size=36", "--training.epochs=10", "--model.drop_path=0"]
    command = torchrun_command(processes, beton, folder, *values, *args, **options)
    if torchrun:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert shown.returncode == 0, shown.stderr[-3000:]
        return shown.stdout + shown.stderr
    script = next(place for place, word in enumerate(command) if word.endswith(".py"))
    ranks = start_ranks(processes, command[script], args=command[script + 1 :])
    said = [process.communicate(timeout=200) for process in ranks]
    assert [process.returncode for process in ranks] == [0] * processes, said
    return "".join(said)


@pytest.fixture(scope="module")
def single_process_losses(tiny_beton, tmp_path_factory):
    """Called with "dense" or "fused", and "adamw" or "muon": the losses of one process."""

    @functools.cache
    def losses_of(kind, optimizer):
        values = {"head__loss": kind, "training__optimizer": optimizer, "model__drop_path": 0.0, **CASE}
        return read_losses(pretrain(tiny_config(tiny_beton, tmp_path_factory.mktemp("alone") / "run", **values)))

    return losses_of


@pytest.mark.integration
@pytest.mark.parametrize(
    ("processes", "kind", "optimizer"),
    [
        (2, "fused", "adamw"),
        (2, "fused", "muon"),
        pytest.param(2, "dense", "adamw", marks=pytest.mark.slow),
        pytest.param(4, "dense", "adamw", marks=pytest.mark.slow),
        pytest.param(4, "fused", "adamw", marks=pytest.mark.slow),
    ],
)
def test_the_curve_is_that_of_one_process(single_process_losses, tiny_beton, tmp_path, processes, kind, optimizer):
    """To 1e-4 at every step. With the fused loss each holds a slice of the head; one process resumes their run."""
    alone = single_process_losses(kind, optimizer)
    values = [f"--head.loss={kind}", f"--training.optimizer={optimizer}", "--training.checkpoint_every=4"]
    said = train(
        processes, tiny_beton, tmp_path / "run", "--cutmix.chunk_size=3", *values, torchrun=optimizer == "adamw"
    )
    assert f"{processes} processes" in said
    assert said.count("done:") == 1
    curve = read_losses(tmp_path / "run")
    assert len(curve) == 20
    assert np.abs(curve / alone - 1).max() < 1e-4
    last = checkpoint.listing(tmp_path / "run" / "checkpoints")[-1]
    assert checkpoint.load(last)["model"]["head.weight"].shape == (64, 32)
    last.unlink()
    values = {"head__loss": kind, "training__optimizer": optimizer, "model__drop_path": 0.0, **CASE}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__resume="auto", **values))
    assert len(read_losses(folder)) == 20
    assert np.abs(read_losses(folder) / alone - 1).max() < 1e-4


@pytest.mark.slow
def test_fine_tuning_on_two_processes_judges_every_image_once(tiny_beton, tmp_path):
    train(
        2, tiny_beton, tmp_path / "f", f"--data.test={tiny_beton}", "--training.evaluate_every=0", script="finetune.py"
    )
    assert np.isfinite(read_losses(tmp_path / "f")).all()
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE)
    model = Classifier(create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), init_head(32, 4))
    model.load_state_dict(checkpoint.newest(tmp_path / "f" / "checkpoints")[1]["model"])
    labels = torch.from_numpy(open_beton(tiny_beton).label)
    again = top_k(model, EvaluationImages(tiny_beton, 32, 64), labels, resolve_runtime(cfg.training, 0))
    result = json.loads((tmp_path / "f" / "result.json").read_text())
    assert {k: result[k] for k in again} == again


def begun(command, folder, lines):
    """The command, once it has logged so many steps."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= lines):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1][-3000:]
    return process


def workers_of(process):
    """The processes that torchrun started."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    return [int(pid) for pid in children if b"train_idmm.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


LONG = (
    "--training.batch_size=4",
    "--training.epochs=12",
    "--model.drop_path=0",
    "--training.checkpoint_every=1",
    "--training.keep_checkpoints=4",
)


@pytest.fixture(scope="module")
def uninterrupted_losses(tiny_beton, tmp_path_factory):
    """The losses of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(torchrun_command(2, tiny_beton, folder, *LONG), check=True, capture_output=True, timeout=200)
    return read_losses(folder)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_says_so(tiny_beton, tmp_path):
    process = begun(torchrun_command(2, tiny_beton, tmp_path / "run", *LONG), tmp_path / "run", 20)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    began = time.monotonic()
    _, message = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode
    assert "Signal 9 (SIGKILL)" in message


@pytest.mark.slow
def test_the_job_goes_on_by_itself_after_a_process_died(tiny_beton, tmp_path, uninterrupted_losses):
    """torchrun --max-restarts 1: from the last checkpoint, and to the same curve."""
    process = begun(torchrun_command(2, tiny_beton, tmp_path / "run", *LONG, restarts=1), tmp_path / "run", 40)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    _, message = process.communicate(timeout=150)
    assert process.returncode == 0, message[-3000:]
    assert np.array_equal(read_losses(tmp_path / "run"), uninterrupted_losses)


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("shared", ["0", "1"], ids=["shared-store", "own-store"])
def test_processes_meet_again_after_a_restart_though_one_is_late(tmp_path, late, shared):
    """torchrun keeps the first attempt's addresses; the second must not take them for its own, whoever comes first."""
    (tmp_path / "meet.py").write_text(f"""
import os, signal, time
import torch
from idmm_fast.runtime import distributed
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
time.sleep(3 if attempt == 1 and rank == {late} else 0)
with distributed.process_group("cpu"):
    if attempt == 0 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt == 0:
        time.sleep(60)
    os.write(1, f"met {{distributed.all_reduce_sum(torch.ones(1)).item()}}\\n".encode())
""")
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "--max-restarts=1",
            tmp_path / "meet.py",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": shared},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert shown.stdout.count("met 2.0") == 2


def meeting(tmp_path, body):
    """Two processes, without torchrun, which would end the other one, run `body` inside distributed.process_group.

    Of each: (exit code, what it printed, seconds it lived). The backend's timeout is 2 seconds instead of half an hour.
    """
    (tmp_path / "meet.py").write_text(f"""
import datetime, os, signal, sys, time
import torch
import torch.distributed as dist
from idmm_fast.runtime import distributed
rank, start = int(os.environ["RANK"]), dist.init_process_group
dist.init_process_group = lambda *args, **named: start(*args, timeout=datetime.timedelta(seconds=2), **named)
distributed.HEARTBEAT_SECONDS, distributed.HEARTBEAT_TIMEOUT, distributed.EXIT_GRACE_SECONDS = 0.2, 4.0, 1.0
try:
    with distributed.process_group("cpu"):
{textwrap.indent(textwrap.dedent(body), " " * 8)}
except OSError as error:
    sys.exit(f"error: {{error}}")
""")
    machines = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # of their own: only so do the counts differ
    both = start_ranks(2, tmp_path / "meet.py", lambda rank: machines | {"TORCHELASTIC_RESTART_COUNT": str(rank)})
    began, ended = time.monotonic(), {}
    try:
        while len(ended) < 2 and time.monotonic() - began < min([60, *(end + 10 for end in ended.values())]):
            ended |= {
                k: time.monotonic() - began
                for k, process in enumerate(both)
                if k not in ended and process.poll() is not None
            }
            time.sleep(0.02)
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, process.communicate(), ended.get(k, 60.0)) for k, process in enumerate(both)]


@pytest.mark.integration
def test_all_processes_evaluate_with_the_batch_norms_of_the_first(tmp_path):
    body = """
        network = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
        network(torch.full((4, 2), 10.0 * rank + 1))
        network[1].bias.data.fill_(rank)
        distributed.broadcast_running_stats(network)
        print([round(x, 3) for x in network[0].running_mean.tolist()], network[1].bias.tolist())
    """
    for rank, (code, said, _) in enumerate(meeting(tmp_path, body)):
        assert code == 0, said
        assert f"[0.1, 0.1] [{rank}.0, {rank}.0]" in said


@pytest.mark.integration
def test_an_evaluation_may_take_longer_than_the_backend_waits(tmp_path):
    for code, said, _ in meeting(
        tmp_path,
        """
        found = distributed.broadcast_from_main(lambda: (time.sleep(3), {"top1": 50.0})[1])
        every = distributed.all_gather_objects((time.sleep(2.5 * rank), rank)[1])
        print(found, every, distributed.all_reduce_sum(torch.ones(1)).item(), distributed.restarted())
        time.sleep(2.5 * rank)  # the end is waited for too
    """,
    ):
        assert code == 0, said
        assert (
            "{'top1': 50.0} [0, 1] 2.0 True" in said
        )  # torchrun of the second one started it again; the first must know


@pytest.mark.integration
@pytest.mark.parametrize("dead", [0, 1])
def test_who_dies_in_an_evaluation_ends_the_others(tmp_path, dead):
    """Process 0 evaluates, the other one waits. Whichever is killed, the other one notices at once and says so."""
    ended = meeting(
        tmp_path,
        f"""
        pid = distributed.all_gather_objects(os.getpid())[{dead}]
        distributed.broadcast_from_main(lambda: (time.sleep(1), os.kill(pid, signal.SIGKILL), time.sleep(50)))
    """,
    )
    assert ended[dead][0] == -signal.SIGKILL
    code, said, seconds = ended[1 - dead]
    assert code == 1, said
    assert f"error: process {1 - dead} stopped, since another one has ended; the message of that one says why" in said
    assert seconds - ended[dead][2] < 5


@pytest.mark.slow
def test_an_error_in_one_process_ends_one_that_evaluates(tmp_path):
    ended = meeting(
        tmp_path,
        """
        if rank:
            raise OSError("no space left")
        distributed.broadcast_from_main(lambda: time.sleep(50))
    """,
    )
    assert ended[1][:2] == (1, "error: no space left\n")
    assert ended[0][0] == 1
    assert ended[0][1] == "error: process 0 stopped, since another one has ended; the message of that one says why\n"
    assert ended[0][2] < 30


@pytest.mark.slow
def test_a_process_that_does_not_answer_counts_as_lost(tmp_path):
    """A stopped one keeps its connections, as behind a broken network; the other one waits SILENCE, not for ever."""
    ended = meeting(
        tmp_path,
        """
        other = distributed.all_gather_objects(os.getpid())[1]
        def evaluate():
            os.kill(other, signal.SIGSTOP)
            time.sleep(50)
        distributed.broadcast_from_main(evaluate)
    """,
    )
    code, said, seconds = ended[0]
    assert code == 1, said
    assert "error: process 0 stopped, since another one does not answer" in said
    assert seconds < 30


@pytest.mark.parametrize(
    ("there", "said"),
    [(1, "2 processes and 1 GPU; use --nproc-per-node 1 or"), (3, "4 processes and 3 GPUs; use --nproc-per-node 3 or")],
)
def test_more_processes_than_gpus_is_said(monkeypatch, there, said):
    for name, value in {"RANK": 0, "WORLD_SIZE": there + 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": there + 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with pytest.raises(ConfigError, match=f"^{said} --training.device=cpu$"), distributed.process_group("auto"):
        pass


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch):
    job = {
        "RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_MAX_RESTARTS": 3,
    }
    for name, value in job.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), distributed.process_group("cpu"):
        pass


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_goes_on_in_another_precision(before, after):
    """An enabled scaler starts at torch's 2 ** 16 after a disabled one; a disabled one ignores another's scale."""

    def state(enabled, scale):
        model = torch.nn.Module()
        model.head = torch.nn.Linear(2, 2)
        return TrainState(
            model,
            [torch.optim.AdamW(model.parameters())],
            torch.amp.GradScaler("cpu", enabled=enabled, init_scale=scale),
        )

    old, new = state(before, 8.0), state(after, 2.0**16)
    old.scaler.scale(torch.ones(1))  # its scale is made by its first use
    new.load_state_dict(old.state_dict())
    assert new.scaler.is_enabled() is after
    assert new.scaler.get_scale() == ((8.0 if before else 2.0**16) if after else 1.0)


@pytest.mark.slow
def test_a_signal_to_torchrun_checkpoints_in_mid_epoch(tiny_beton, tmp_path, uninterrupted_losses):
    command = torchrun_command(2, tiny_beton, tmp_path / "run", *LONG, "--training.resume=auto")
    process = begun(command, tmp_path / "run", 21)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert "stopped by a signal" in message
    before = len(read_losses(tmp_path / "run"))
    assert 21 <= before < len(uninterrupted_losses)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[1]["step"] == before
    subprocess.run(command, check=True, capture_output=True, timeout=150)
    assert np.array_equal(read_losses(tmp_path / "run"), uninterrupted_losses)


def test_the_slurm_script_hands_on_the_cores_of_a_task(tmp_path):
    """Since SLURM 22.05 srun does not inherit them from sbatch; without a number there is nothing to hand on."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\necho "cores: ${SRUN_CPUS_PER_TASK-none}"\n')
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\necho localhost\n")
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    job = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    for given, found in (({"SLURM_CPUS_PER_TASK": "12"}, "12"), ({}, "none")):
        env = os.environ | job | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        shown = subprocess.run(
            [ROOT / "scripts" / "slurm.sh", "x.yaml"], env=env, capture_output=True, text=True, check=True
        )
        assert shown.stdout == f"cores: {found}\n"


@pytest.mark.slow
def test_the_slurm_script_starts_what_it_should(tiny_beton, tmp_path):
    """With an srun and an scontrol that know one node of two processes: they train, and the same line again goes on."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/usr/bin/env bash\nexec "$@"\n')
    (tools / "scontrol").write_text("#!/usr/bin/env bash\necho localhost\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    job = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    line = [
        ROOT / "scripts" / "slurm.sh",
        ROOT / "rn_configs" / "pets.yaml",
        *torchrun_command(2, tiny_beton, tmp_path / "run")[7:],
        "--training.batch_size=16",
    ]
    for epochs in (2, 2):
        shown = subprocess.run(
            [*map(str, line), f"--training.epochs={epochs}"],
            cwd=ROOT,
            env=os.environ | job | {"PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        assert shown.returncode == 0, shown.stderr[-3000:]
        assert "2 processes" in shown.stdout + shown.stderr
    assert len(read_losses(tmp_path / "run")) == 8
    assert "resuming at step 8" in shown.stdout + shown.stderr
    assert subprocess.run([ROOT / "scripts" / "slurm.sh"], capture_output=True, check=False).returncode == 2
