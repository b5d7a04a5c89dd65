"""What reaches the disk, and whether there is room on it."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from multibox.errors import StorageError


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk.

    Raises:
        OSError: The disk fails.
    """
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it where they are absent, and waits until they have names.

    Raises:
        OSError: The disk is full or fails, or a folder may not be written.
    """
    made = [folder]
    while not made[-1].parent.is_dir():
        made.append(made[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(made):
        # A folder may be one to pass through, which nobody can open.
        with suppress(PermissionError):
            sync_folder(path.parent)


def sync_files(root: Path, files: Iterable[Path]) -> None:
    """Waits until files below a folder are on the disk, with all names from the folder down.

    Raises:
        StorageError: The disk is full or fails.
    """
    folders = {root}
    try:
        for file in files:
            _sync(file, os.O_RDONLY)
            folders |= {folder for folder in file.parents if folder.is_relative_to(root)}
        for folder in sorted(folders, reverse=True):
            sync_folder(folder)
    except OSError as error:
        raise StorageError(
            f"cannot be brought to the disk ({error.strerror})",
            file=root,
            remedy="Check that the disk is not full, and is sound",
        ) from None


def free_bytes(folder: Path) -> int | None:
    """Returns how much this user may write where a folder is or would be; None if unknown."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None


def require_room(folder: Path, needed: int, *, purpose: str, remedy: str) -> None:
    """Refuses a folder that cannot be written or has too little room, and leaves nothing there.

    Args:
        folder: It may be absent.
        needed: Bytes that are still to be written.
        purpose: What they are, after "needed for".
        remedy: How to need less.

    Raises:
        StorageError: The folder cannot be written, or too little is free. Where nobody knows how
            much is free, that is no error.
    """
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})",
            file=folder,
            remedy="Choose a folder that this user can write",
        ) from None
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise StorageError(
            f"too little room: {mebibytes(needed)} are needed for {purpose}, and "
            f"{mebibytes(free)} are free",
            file=folder,
            remedy=remedy,
        )


def mebibytes(count: int) -> str:
    """Returns a number of bytes as text, rounded up to whole MiB."""
    return f"{-(-count // 2**20)} MiB"


def _existing(folder: Path) -> Path:
    """Returns the folder itself or the nearest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
