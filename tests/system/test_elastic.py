"""torchrun on two machines: one is lost and comes back, and the run ends with the same bits."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rank_rig
from rank_rig import Rig, children, free_port, left_behind
from system.conftest import environment
from system.test_resume import digests

from multibox.commands.demo.dataset import draw_dataset

pytestmark = [pytest.mark.system, pytest.mark.slow]

STEPS = 40
# The addresses of two machines. torchrun numbers them in this order.
FIRST, SECOND = "127.0.0.1", "127.0.0.2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    draw_dataset(folder, train_images=24, test_images=2)
    return folder


def line(data: Path, out: Path) -> list[str]:
    options = ["train", "tiny", "--data", data, "--out", out, "--workers", 1, "--steps", STEPS]
    return [str(option) for option in options]


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted."""
    out = tmp_path_factory.mktemp("unbroken")
    rig = Rig()
    assert rig.start(line(data, out / "run"), out).wait() == [0, 0]
    rig.close()
    return out / "run"


class Machines:
    """Starts torchrun as two machines do.

    Args:
        command: What follows `multibox`, on both machines.
        folder: For what the processes write to standard error.
        port: The port of the rendezvous, on the machine that starts first.
    """

    def __init__(self, command: list[str], folder: Path, port: int) -> None:
        self._command, self._folder, self._port = command, folder, port
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, address: str) -> subprocess.Popen[bytes]:
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        torchrun += ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", "test", "--local-addr", address]
        torchrun += ["--rdzv-endpoint", f"127.0.0.1:{self._port}"]
        # A lost machine is noticed after three seconds. The other one waits long enough for it.
        torchrun += ["--rdzv-conf", "keep_alive_interval=1,last_call_timeout=300"]
        # Each round has a store of its own, so that any machine can become the first one.
        own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self._folder / f"said-{len(self.agents)}").open("wb") as said:
            agent = subprocess.Popen(
                [*torchrun, rank_rig.__file__, *self._command],
                env=environment() | own_store,
                stdout=said,
                stderr=said,
            )
        self.agents.append(agent)
        return agent

    def wait_for_port(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("said-*")))


@pytest.fixture
def machines(data: Path, tmp_path: Path) -> Iterator[Machines]:
    found = Machines(line(data, tmp_path / "run"), tmp_path, free_port())
    yield found
    for agent in found.agents:
        if agent.poll() is None:
            agent.terminate()
            agent.wait(60)


@pytest.mark.parametrize("lost", [FIRST, SECOND])
def test_a_machine_that_is_lost_and_comes_back(
    machines: Machines, unbroken: Path, tmp_path: Path, lost: str
) -> None:
    kept = machines.start(SECOND if lost == FIRST else FIRST)
    # The machine that starts first keeps the rendezvous.
    machines.wait_for_port()
    victim = machines.start(lost)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    while victim.poll() is None and not checkpoint.is_dir():
        time.sleep(0.005)
    processes = [victim.pid, *children(victim.pid)]
    processes += [worker for pid in processes for worker in children(pid)]
    for pid in dict.fromkeys(processes):
        os.kill(pid, signal.SIGKILL)
    victim.wait(10)
    again = machines.start(lost)
    statuses = [agent.wait(300) for agent in (kept, again)]
    assert statuses == [0, 0], machines.said()
    assert left_behind(processes) == []
    assert machines.said().count("resuming with") == 0
    assert digests(tmp_path / "run") == digests(unbroken)
