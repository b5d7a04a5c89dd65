import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from multibox.errors import StorageError
from multibox.storage.lock import RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from multibox.storage.lock import RunLock
with RunLock(Path(sys.argv[1])):
    forks = sys.argv[2] == "forks"
    if not forks or os.fork() == 0:
        print(os.getpid() if forks else 0, flush=True)
    time.sleep(60)
"""


FAR = f'{{"pid": 1{"0" * 30}, "host": "{socket.gethostname()}", "start": "?"}}'


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@contextmanager
def holder(folder: Path, manner: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the folder, and the number of the worker it forked, or 0."""
    with start(HOLD, str(folder), manner) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            yield process, worker
        finally:
            process.kill()
            if worker:
                os.kill(worker, signal.SIGKILL)


def test_loser_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path, "alone") as (process, _):
        expected = f"{tmp_path}: is in use by process {process.pid} on {socket.gethostname()}, star"
        with pytest.raises(StorageError, match=expected), RunLock(tmp_path):
            pass


@pytest.mark.parametrize("manner", ["alone", "forks"])
def test_killed_holder_leaves_the_folder_free(tmp_path: Path, manner: str) -> None:
    with holder(tmp_path, manner) as (process, worker):
        process.kill()
        process.wait()
        assert worker == 0 or Path(f"/proc/{worker}").exists()
        with RunLock(tmp_path):
            pass


def simultaneous_starts(folder: Path, starts: int) -> list[str]:
    """What each of several forks is told; the winner holds the folder until all know."""
    go, answers, end = os.pipe(), os.pipe(), os.pipe()
    children: list[int] = []
    while len(children) < starts and 0 not in children:
        children.append(os.fork())
    if 0 in children:
        try:
            os.close(go[1])
            os.close(end[1])
            os.read(go[0], 1)
            try:
                with RunLock(folder):
                    os.write(answers[1], f"won {os.getpid()}\n".encode())
                    os.read(end[0], 1)
            except StorageError as error:
                os.write(answers[1], f"lost {error}\n".encode())
        finally:
            os._exit(0)
    # Closing a pipe wakes all who read from it.
    os.close(go[1])
    os.close(answers[1])
    said = b""
    while said.count(b"\n") < starts and (part := os.read(answers[0], 65_536)):
        said += part
    os.close(end[1])
    for child in children:
        os.waitpid(child, 0)
    for descriptor in (go[0], answers[0], end[0]):
        os.close(descriptor)
    return said.decode().splitlines()


def check_rounds(tmp_path: Path, rounds: int, starts: int) -> None:
    for number in range(rounds):
        # Every other round finds what a killed holder said.
        folder = tmp_path / f"run-{number}"
        if number % 2:
            folder.mkdir()
            (folder / ".lock").write_text(
                f'{{"pid": {2**22}, "host": "{socket.gethostname()}", "start": "long ago"}}'
            )
        answers = sorted(simultaneous_starts(folder, starts))
        assert [answer.split()[0] for answer in answers] == ["lost"] * (starts - 1) + ["won"]
        winner = answers[-1].split()[1]
        for answer in answers[:-1]:
            assert f"is in use by process {winner} on {socket.gethostname()}" in answer


def test_one_of_several_simultaneous_starts_wins_and_the_others_are_told(tmp_path: Path) -> None:
    check_rounds(tmp_path, rounds=10, starts=8)


@pytest.mark.slow
def test_two_hundred_rounds(tmp_path: Path) -> None:
    check_rounds(tmp_path, rounds=200, starts=8)


def test_a_new_folder_goes_when_nothing_came_into_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path / "runs" / "new"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "runs" / "new").exists()
    with RunLock(tmp_path / "used"):
        (tmp_path / "used" / "run.json").touch()
    (tmp_path / "empty").mkdir()
    with RunLock(tmp_path / "empty"):
        pass
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert sorted(names) == ["empty", "empty/.lock", "runs", "used", "used/.lock", "used/run.json"]


def test_a_lock_that_its_last_holder_removed_is_not_the_folder_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, left = fcntl.flock, [1]

    def removed_before(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if left:
            left.pop()
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with RunLock(tmp_path), pytest.raises(StorageError, match="in use"), RunLock(tmp_path):
        pass


def test_second_lock_of_the_same_process_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    # A killed holder leaves its introduction behind, which may be longer than the next one.
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "' + "x" * 500 + '"}')
    with RunLock(tmp_path):
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(2):
            with pytest.raises(StorageError, match=f"process {os.getpid()} "), RunLock(tmp_path):
                pass
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    with RunLock(tmp_path):
        pass


def test_lock_ends_with_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        1 / 0  # noqa: B018
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 1}', FAR, "\xff"])
def test_holder_without_a_legible_introduction(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(text, encoding="latin-1")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="in use by another process"), RunLock(tmp_path):
            pass


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), RunLock(tmp_path / "run"):
        pass


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with pytest.raises(StorageError, match="cannot be locked"), RunLock(tmp_path):
        pass
