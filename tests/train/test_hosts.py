"""Two machines (network namespaces), one of which is lost: torchrun and training resume, to one process's curve."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, read_losses, tiny_config, torchrun_command

from idmm_fast.train.pretraining import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CASE = {
    "training__batch_size": 8,
    "cutmix__chunk_size": 4,
    "training__epochs": 25,
    "model__drop_path": 0.0,
    "training__checkpoint_every": 1,
}  # 8 steps an epoch
PATIENCE = 200  # seconds, for anything


def ip(*args):
    return subprocess.run(["ip", *args], capture_output=True, text=True, timeout=30, check=True).stdout


class Hosts:
    """Hosts 1 and 2: a network namespace each, 10.77.0.1 and 10.77.0.2, joined by a veth pair, and nothing else."""

    def __init__(self):
        self.names = {k: f"idmm{os.getpid()}n{k}" for k in (1, 2)}
        self.started = []

    def build(self):
        for name in self.names.values():
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "veth",
            "netns",
            self.names[1],
            "type",
            "veth",
            "peer",
            "name",
            "veth",
            "netns",
            self.names[2],
        )
        for k, name in self.names.items():
            ip("-n", name, "addr", "add", f"10.77.0.{k}/24", "dev", "veth")
            for link in ("lo", "veth"):
                ip("-n", name, "link", "set", link, "up")

    def start(self, k, beton, folder, *args, endpoint=1, silence=15):
        """torchrun on host k, one process; they meet on host `endpoint`. silence: seconds until one counts as lost."""
        script = folder.parent / "train.py"
        script.write_text(
            f"import runpy\nfrom idmm_fast.runtime import distributed\ndistributed.HEARTBEAT_TIMEOUT = {silence}\n"
            f"runpy.run_path({str(ROOT / 'train_idmm.py')!r}, run_name='__main__')\n"
        )
        command = torchrun_command(
            1,
            beton,
            folder,
            *[f"--{key.replace('__', '.')}={value}" for key, value in CASE.items()],
            *args,
            script=script,
            restarts=3,
        )
        command[3:4] = [
            "--nnodes=1:2",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=10.77.0.{endpoint}:29400",
            "--rdzv-id=test",
            f"--local-addr=10.77.0.{k}",
            f"--rdzv-conf=is_host={int(k == endpoint)},last_call_timeout=5",
        ]
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "veth",
            "OMP_NUM_THREADS": "1",
        }
        env |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.said = folder.parent / "said"
        with open(f"{self.said}{k}", "a") as said:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[k], *command], env=env, stdout=said, stderr=said
            )
        self.started.append(process)
        return process

    def output(self, k):
        return Path(f"{self.said}{k}").read_text()

    def kill(self, k):
        """End every process of host k; its kernel closes their connections."""
        while pids := ip("netns", "pids", self.names[k]).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)

    def cut(self, k):
        """Take the cable out: nothing arrives any more, and nobody is told."""
        ip("-n", self.names[k], "link", "set", "veth", "down")

    def clear(self):
        for name in self.names.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                for pid in ip("netns", "pids", name).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                ip("netns", "del", name)
        for process in self.started:
            process.kill()
            process.wait(timeout=30)


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`: apt-get install iproute2")
    two = Hosts()
    try:
        try:
            two.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield two
    finally:
        two.clear()


@pytest.fixture(scope="module")
def single_process_losses(tiny_beton, tmp_path_factory):
    return read_losses(pretrain(tiny_config(tiny_beton, tmp_path_factory.mktemp("alone") / "run", **CASE)))


def until(true, hosts, what):
    """Wait until it is; the seconds that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE, (
            f"{what}: not within {PATIENCE} s\n{hosts.output(1)[-3000:]}\n{hosts.output(2)[-3000:]}"
        )
        time.sleep(0.05)
    return time.monotonic() - began


def begun(hosts, beton, folder):
    """Both hosts train, and 40 steps are made."""
    both = [hosts.start(k, beton, folder) for k in (1, 2)]
    metrics = folder / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 40, hosts, "40 steps")
    assert "2 processes" in hosts.output(1)
    return both


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_what_is_left_goes_on_by_itself(hosts, tiny_beton, tmp_path, single_process_losses, how):
    """Host 2 is lost: its processes are killed, or the link is cut. Host 1 resumes alone from the last checkpoint."""
    one, _ = begun(hosts, tiny_beton, tmp_path / "run")
    getattr(hosts, how)(2)
    noticed = until(lambda: "error: process 0 stopped" in hosts.output(1), hosts, "to notice")
    hosts.cut(2)
    print(f"{how}: noticed after {noticed:.1f} s")
    again = until(lambda: "resuming at step" in hosts.output(1), hosts, "to begin again")
    until(lambda: one.poll() is not None, hosts, "to end")
    print(f"trained again {again:.1f} s later")
    assert one.returncode == 0, hosts.output(1)[-3000:]
    assert noticed < (10 if how == "kill" else 60)
    went_on = int(re.search(r"resuming at step (\d+)", hosts.output(1))[1])
    assert 32 <= went_on < 200
    assert np.abs(read_losses(tmp_path / "run") / single_process_losses - 1).max() < 1e-4
    if how == "cut":  # on the other side nobody trains either, though its torchrun still waits for the network
        assert "error: process 1 stopped, since another one does not answer" in hosts.output(2)


def test_after_the_loss_of_the_meeting_place_torchrun_is_started_again(
    hosts, tiny_beton, tmp_path, single_process_losses
):
    """Host 1, where they meet, is lost: torchrun on host 2 ends with an error by itself; started again, it goes on."""
    _, two = begun(hosts, tiny_beton, tmp_path / "run")
    hosts.kill(1)
    until(lambda: "error: process 1 stopped" in hosts.output(2), hosts, "to notice")
    hosts.cut(1)
    took = until(lambda: two.poll() is not None, hosts, "to end")
    print(f"torchrun ended after {took:.1f} s")
    assert two.returncode
    assert "error: process 1 stopped, since another one has ended" in hosts.output(2)
    again = hosts.start(2, tiny_beton, tmp_path / "run", "--training.resume=auto", endpoint=2)
    until(lambda: again.poll() is not None, hosts, "to end")
    assert again.returncode == 0, hosts.output(2)[-3000:]
    went_on = int(re.search(r"resuming at step (\d+)", hosts.output(2))[1])
    assert 32 <= went_on < 200
    assert np.abs(read_losses(tmp_path / "run") / single_process_losses - 1).max() < 1e-4
