"""One run per folder, by a lock of the kernel's that ends with the process that holds it."""

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from multibox.errors import StorageError


class RunLock:
    """Holds a run's folder for this process, as a context manager.

    The file `.lock` stays: only the lock on it counts, and its text merely tells the loser who
    the winner is. Processes forked meanwhile let go of it at once, so that a loader worker that
    outlives a killed run does not keep the folder from the next one.

    Args:
        folder: The run's folder; made where it is missing.

    Raises:
        StorageError: On entering: another process holds the folder (the message names its
            number, its machine and its start), or the folder cannot be written or locked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        path = self._folder / ".lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"cannot be written ({error.strerror})",
                file=path,
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
        self._descriptor = descriptor
        os.register_at_fork(after_in_child=self._close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

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
    """Who wrote the introduction; it may be missing for a moment after the lock is taken."""
    try:
        entry = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {entry['pid']} on {entry['host']}, started {entry['start']}"
    except (ValueError, TypeError, KeyError):
        return "another process"
