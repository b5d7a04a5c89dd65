"""The folder of results: no file that somebody else wrote is overwritten."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from multibox.errors import StorageError

WRITTEN = ".written-by-predict"
"""The file that lists the files that `predict` wrote, one JSON text a line."""

_RECORD_KEYS = {"image", "width", "height", "detections"}


class OutFolder:
    """A folder for results. Results of an earlier `predict` are replaced, other files are not.

    Args:
        folder: The folder. It is created when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._earlier = _earlier_files(folder / WRITTEN)
        self._now = set[str]()

    def require_replaceable(self, names: Iterable[str]) -> None:
        """Checks that files with these names can be written.

        Raises:
            StorageError: One of them exists, and `predict` did not write it.
        """
        for name in names:
            file = self.folder / name
            if os.path.lexists(file) and name not in self._earlier and not _is_record(file):
                raise StorageError(
                    "already exists and was not written by predict, so it is not overwritten",
                    file=file,
                    remedy="Choose another folder for --out",
                )

    def claim(self, name: str) -> Path:
        """Returns the path of a file that will be written, after noting that it is `predict`'s.

        Args:
            name: Its path below the folder.

        Raises:
            StorageError: A file that must not be replaced has this name, or this run has already
                written it, or the folder cannot be written.
        """
        path = self.folder / name
        if name in self._now:
            raise StorageError("would be written twice", file=path, remedy="Rename an image")
        self.require_replaceable([name])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if name not in self._earlier:
                line = json.dumps(name) + "\n"
                with (self.folder / WRITTEN).open("ab") as file:
                    file.write(line.encode())
        except OSError as error:
            raise unwritable(path, error) from None
        self._now.add(name)
        return path

    def write(self, name: str, content: bytes) -> None:
        """Writes a file completely or not at all.

        Raises:
            StorageError: `claim` refuses it, or the disk is full or fails.
        """
        path = self.claim(name)
        write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under another name, and renames it when it is complete.

    Raises:
        StorageError: The disk is full or fails.
    """
    partial = path.with_name(f".{path.name[:200]}.partial")
    try:
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> StorageError:
    """Returns the error for a file that cannot be written."""
    return StorageError(
        f"cannot be written ({error.strerror})",
        file=path,
        remedy="Check that the folder is writable and the disk not full",
    )


def _earlier_files(record: Path) -> set[str]:
    found = set[str]()
    with suppress(OSError):
        for line in record.read_bytes().splitlines():
            # The last line may be cut short, if the process was killed.
            with suppress(ValueError):
                found.add(str(json.loads(line)))
    return found


def _is_record(file: Path) -> bool:
    """Whether a file is a record of an image, or a picture beside one."""
    if file.suffix not in (".json", ".jpg"):
        return False
    try:
        found = json.loads(file.with_suffix(".json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == _RECORD_KEYS
