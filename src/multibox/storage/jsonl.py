"""Append-only files with one JSON object per line.

On resume, a file is cut back to its length at the time of the checkpoint. `metrics.jsonl` contains
no times, so like the weights it depends only on the configuration and the data of the run. Times go
to a second file, `timings.jsonl`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from multibox.errors import StorageError

JSON: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None


class Journal:
    """Appends records to a file. It is a context manager that closes the file.

    Args:
        path: The file; created if it does not exist.
        length: The length in bytes to which the file is cut first: the one stored in the
            checkpoint, or 0 for a new run. None keeps every complete line.

    Raises:
        StorageError: The file cannot be written, is shorter than `length`, or no line ends there.
    """

    def __init__(self, path: Path, length: int | None) -> None:
        self._path = path
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise self._failure(error) from None
        try:
            self._length = self._whole_lines() if length is None else self._checked(length)
            os.ftruncate(self._descriptor, self._length)
        except OSError as error:
            self.close()
            raise self._failure(error) from None
        except StorageError:
            self.close()
            raise

    @property
    def length(self) -> int:
        """Length of the file in bytes, for the checkpoint."""
        return self._length

    def write(self, record: Mapping[str, JSON]) -> None:
        """Appends a record as one line, with its keys in the given order.

        Raises:
            StorageError: The disk is full or fails. No part of the line remains.
            ValueError: A number is NaN or infinite.
        """
        text = json.dumps(dict(record), separators=(",", ":"), allow_nan=False)
        line = text.encode() + b"\n"
        try:
            # If the disk is nearly full, the system writes part of the line without an error.
            if os.write(self._descriptor, line) < len(line):
                os.ftruncate(self._descriptor, self._length)
                raise StorageError("the disk is full", file=self._path, remedy="Make room")
        except OSError as error:
            raise self._failure(error) from None
        self._length += len(line)

    def sync(self) -> None:
        """Waits until the lines are on the disk. Call it before saving `length` in a checkpoint.

        Raises:
            StorageError: The disk is full or fails.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Closes the file; nothing can be written afterwards."""
        os.close(self._descriptor)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, length: int) -> int:
        """Returns the length after checking that the file has as many bytes and a line ends there.

        Raises:
            StorageError: It does not.
        """
        size = os.fstat(self._descriptor).st_size
        if size < length:
            raise StorageError(
                f"has {size} bytes, but the checkpoint was saved when it had {length}",
                file=self._path,
                remedy="Restore the file, or start a new run in another folder",
            )
        if length > 0 and os.pread(self._descriptor, 1, length - 1) != b"\n":
            raise StorageError(
                "was changed: no line ends here, but one did when the checkpoint was saved",
                file=self._path,
                position=f"byte {length}",
                remedy="Restore the file, or start a new run in another folder",
            )
        return length

    def _whole_lines(self) -> int:
        """Returns the length of all complete lines.

        A killed process may leave part of a line, and a power failure may leave zeros.
        """
        return self._path.read_bytes().partition(b"\0")[0].rfind(b"\n") + 1

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot be written ({error.strerror})",
            file=self._path,
            remedy="Check that the folder is writable and the disk not full",
        )
