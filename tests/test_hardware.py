import os
import subprocess
import sys

import pytest
import torch

from multibox.hardware import usable_cores
from multibox.processes.distributed import Processes
from multibox.training.data_loader import worker_count

CPU = torch.device("cpu")


def test_cores_that_this_process_may_not_use_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cores() == len(allowed)


def test_where_the_system_does_not_say_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_cores() == 1


def test_nothing_that_only_linux_has_is_needed_to_start() -> None:
    """macOS has none of these."""
    code = """
import ctypes, os, socket, torch
for module, names in {
    os: ["sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate"],
    socket: ["TCP_USER_TIMEOUT"],
}.items():
    for name in names:
        delattr(module, name)
ctypes.CDLL = lambda _: object()
from multibox.cli.main import main
from multibox.data.workers import keep_memory
keep_memory()
main(["--version"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("local", "on_this_machine"), [("2", 2), (None, 8), ("many", 8), ("0", 1), ("99", 8)]
)
def test_a_machine_s_cores_are_shared_by_the_processes_on_it(
    local: str | None, on_this_machine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if local is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert Processes(3, 8, CPU).on_this_machine == on_this_machine


@pytest.mark.parametrize(("device", "count"), [("cpu", 1), ("cuda", 7)])
def test_workers_are_counted_for_this_machine_alone(
    device: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibox.training.data_loader.usable_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    place = torch.device(device)
    assert worker_count(-1, Processes(9, 32, place)) == count
    assert worker_count(5, Processes(9, 32, place)) == 5
