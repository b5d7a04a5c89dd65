"""Append-only files with one JSON object per line. A resume cuts them to a checkpoint's length.

`metrics.jsonl` is a pure function of the run's configuration and data, as the weights are. It has
no times. These are in a second journal, `timings.jsonl`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from multibox.errors import StorageError

JSON: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None


class Journal:
    """Appends records to a file. As a context manager, it closes the file.

    Args:
        path: The file. It is made if it does not exist.
        length: Bytes that the file is cut to first: the length in the checkpoint that the run
            resumes from, or 0 for a new run. None keeps every whole line.

    Raises:
        StorageError: The file cannot be written, is shorter than `length`, or has no end of a
            line there.
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
        """Bytes written so far. A checkpoint stores this number."""
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
            # A disk that is nearly full writes part of a line without an error.
            if os.write(self._descriptor, line) < len(line):
                os.ftruncate(self._descriptor, self._length)
                raise StorageError("the disk is full", file=self._path, remedy="Make room")
        except OSError as error:
            raise self._failure(error) from None
        self._length += len(line)

    def sync(self) -> None:
        """Waits until the lines are on the disk. A checkpoint with this `length` is written later.

        Raises:
            StorageError: The disk is full or fails.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Closes the file. Nothing can be written afterwards."""
        os.close(self._descriptor)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, length: int) -> int:
        """Returns the length if the file has that many bytes and the last of them ends a line."""
        size = os.fstat(self._descriptor).st_size
        if size < length:
            raise StorageError(
                f"has {size} bytes, but the checkpoint was saved when it had {length}",
                file=self._path,
                remedy="Restore the file, or start a new run in another folder",
            )
        if length > 0 and os.pread(self._descriptor, 1, length - 1) != b"\n":
            raise StorageError(
                "no line ends where one did when the checkpoint was saved",
                file=self._path,
                position=f"byte {length}",
                remedy="Restore the file, or start a new run in another folder",
            )
        return length

    def _whole_lines(self) -> int:
        """Returns the length without an incomplete last line and the zeros of a power cut."""
        return self._path.read_bytes().partition(b"\0")[0].rfind(b"\n") + 1

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot be written ({error.strerror})",
            file=self._path,
            remedy="Check that the folder is writable and the disk not full",
        )
