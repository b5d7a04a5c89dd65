"""Syncs files and folders to the disk, and checks the free space."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from multibox.errors import StorageError


def sync_folder(folder: Path) -> None:
    """Waits until the file names in a folder are on the disk.

    Raises:
        OSError: The disk fails.
    """
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def make_folder(folder: Path) -> None:
    """Creates a folder with all missing parents, and waits until their names are on the disk.

    Raises:
        OSError: The disk is full or fails, or this user may not write to a folder.
    """
    made = [folder]
    while not made[-1].parent.is_dir():
        made.append(made[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(made):
        # This user may be allowed to enter a parent, but not to open it.
        with suppress(PermissionError):
            sync_folder(path.parent)


def sync_files(root: Path, files: Iterable[Path]) -> None:
    """Waits until files below a folder are on the disk, with the names of all folders in between.

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
            f"cannot be synced to the disk ({error.strerror})",
            file=root,
            remedy="Check that the disk is not full or damaged",
        ) from None


def free_bytes(folder: Path) -> int | None:
    """Returns the free bytes on the disk of a folder, which may not exist; None if unknown."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None


def require_room(folder: Path, needed: int, *, purpose: str, remedy: str) -> None:
    """Checks that a folder can be written and that its disk has enough room. It leaves no file.

    Args:
        folder: The folder. It may not exist.
        needed: Number of bytes that will be written.
        purpose: What the bytes are for; it follows "needed for" in the message.
        remedy: What the user can do to need less.

    Raises:
        StorageError: The folder cannot be written, or there is too little room. If the free space
            is unknown, there is no error.
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
    """Returns the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
