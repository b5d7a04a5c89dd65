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
from multibox.runtime.lock import RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from multibox.runtime.lock import RunLock
with RunLock(Path(sys.argv[1])):
    forks = sys.argv[2] == "forks"
    if not forks or os.fork() == 0:
        print(os.getpid() if forks else 0, flush=True)
    time.sleep(60)
"""

TRY = """
import sys
from pathlib import Path
from multibox.errors import StorageError
from multibox.runtime.lock import RunLock
sys.stdin.readline()
try:
    with RunLock(Path(sys.argv[1])):
        print("won", flush=True)
        sys.stdin.readline()
except StorageError as error:
    print(f"lost {error.exit_code}", flush=True)
"""


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


def test_one_of_several_simultaneous_starts_wins(tmp_path: Path) -> None:
    processes = [start(TRY, str(tmp_path / "runs" / "a")) for _ in range(4)]
    answers = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        answers.append(process.stdout.readline().strip())
    for process in processes:
        process.communicate("end\n")
    assert sorted(answers) == ["lost 5", "lost 5", "lost 5", "won"]


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


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 1}', "\xff"])
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
