"""Only one run uses a folder: the kernel holds a lock and releases it when the process ends."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from multibox.errors import StorageError
from multibox.storage.disk import make_folder

_PATIENCE = 0.5
"""Seconds after which a process that has taken the lock has surely written its name."""


class RunLock:
    """A context manager that reserves a run's folder for this process.

    The file `.lock` stays. Only the lock on it counts; its text tells other processes who holds it.
    If the folder was made for the lock and nothing else was written, it is removed again. Forked
    processes release the lock at once, so that a worker that survives a killed run does not block
    the next run.

    Args:
        folder: The run's folder. It is made if it does not exist.

    Raises:
        StorageError: On entering: another process holds the folder, or the folder cannot be written
            or locked. The message names the process, its machine and its start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        self._is_new = not self._folder.exists()
        descriptor = self._lock()
        # The last holder may have removed the file and its folder in the meantime.
        while os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            descriptor = self._lock()
        self._descriptor = descriptor
        os.register_at_fork(after_in_child=self._close)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is None:
            return
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            if self._is_new and [path.name for path in self._folder.iterdir()] == [".lock"]:
                self._path.unlink()
                self._folder.rmdir()
        self._close()

    def _lock(self) -> int:
        try:
            make_folder(self._folder)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"cannot be written ({error.strerror})",
                file=self._path,
                remedy="Choose a folder that this user can write",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _introduction())
        except OSError as error:
            held = isinstance(error, BlockingIOError)
            holder = _holder(descriptor) if held else ""
            os.close(descriptor)
            raise StorageError(
                f"is in use by {holder}" if held else f"cannot be locked ({error.strerror})",
                file=self._folder,
                remedy="Wait for that run, stop it, or choose another folder"
                if held
                else "Choose a folder on a file system with locks and with room",
            ) from None
        return descriptor

    def _close(self) -> None:
        """Closes this process's descriptor; the kernel unlocks when no process has one left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _introduction() -> bytes:
    """Who holds the lock, for the one who does not get it."""
    start = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start}).encode()


def _holder(descriptor: int) -> str:
    """Who wrote the introduction: for a moment after the lock is taken it is a killed holder's."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            entry = json.loads(os.pread(descriptor, 4096, 0))
            holder = f"process {entry['pid']} on {entry['host']}, started {entry['start']}"
            if entry["host"] != socket.gethostname() or _lives(entry["pid"]):
                return holder
        except (ValueError, TypeError, KeyError, OverflowError):
            holder = "another process"
        if time.monotonic() > end:
            return holder
        time.sleep(0.01)


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
