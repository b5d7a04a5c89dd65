"""Locks a run's folder, so that only one process writes to it. The lock ends with the process."""

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
"""Seconds within which a process that has just locked the folder has written its name there."""


class RunLock:
    """A context manager that locks a run's folder for this process.

    The lock is a kernel lock (flock) on the file `.lock`. The file remains afterwards; its text
    only tells other processes which one holds the lock. If the folder was created for the lock and
    is otherwise empty at the end, it is removed. Forked processes close their copy of the lock at
    once, so a worker that outlives a killed run does not keep the folder locked.

    Args:
        folder: The run's folder; created if it does not exist.

    Raises:
        StorageError: On entering: another process has locked the folder (the message gives its
            process id, machine and start time), or the folder cannot be written or locked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        self._is_new = not self._folder.exists()
        descriptor = self._lock()
        # The previous holder may have removed the file and the folder in the meantime.
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
            os.write(descriptor, _holder_entry())
        except OSError as error:
            held = isinstance(error, BlockingIOError)
            holder = _holder(descriptor) if held else ""
            os.close(descriptor)
            raise StorageError(
                f"is in use by {holder}" if held else f"cannot be locked ({error.strerror})",
                file=self._folder,
                remedy="Wait for that run, stop it, or choose another folder"
                if held
                else "Choose a folder on a file system that supports locks and is not full",
            ) from None
        return descriptor

    def _close(self) -> None:
        """Closes this process's descriptor. The kernel unlocks when all descriptors are closed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder_entry() -> bytes:
    """Returns the text of the lock file: process id, machine and start time of this process."""
    start = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start}).encode()


def _holder(descriptor: int) -> str:
    """Returns a description of the process that holds the lock.

    For a moment after a process has locked the file, the text may still be that of a killed one.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            entry = json.loads(os.pread(descriptor, 4096, 0))
            holder = f"process {entry['pid']} on {entry['host']}, started {entry['start']}"
            if entry["host"] != socket.gethostname() or _is_alive(entry["pid"]):
                return holder
        except (ValueError, TypeError, KeyError, OverflowError):
            holder = "another process"
        if time.monotonic() > end:
            return holder
        time.sleep(0.01)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
