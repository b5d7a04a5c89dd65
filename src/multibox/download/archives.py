"""Unpacks archives, and merges the unpacked files into a folder that may already have files.

All members of an archive are checked before the first byte is written. An archive may contain only
plain files and folders, each once, below the folder that it is unpacked to, and not more bytes than
is plausible for its size. Owners, permissions and times in the archive are ignored.
"""

import filecmp
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_ISREG
from typing import IO, NamedTuple

from multibox.errors import DownloadError, StorageError
from multibox.storage.disk import require_room

MORE_ROOM = "Free space, or choose a folder on another disk"
"""The remedy for a full disk."""

_MAX_MEMBERS = 1_000_000
_MAX_RATIO = 20
"""Maximum unpacked bytes for each byte of an archive; JSON needs about 5, a zip bomb hundreds."""
_CHUNK = 1 << 20
_MIN_MEMBER_BYTES = 64
"""Less than the smallest size of a member: 512 bytes in a tar, 76 in a zip."""
# Errors that the standard library raises on damaged headers.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, RuntimeError, ValueError, LookupError, ArithmeticError),
)
_LAST = ("ImageSets", "annotations")
"""Folders that a reader opens first. They are moved last, so half a dataset is not read."""


class _Member(NamedTuple):
    """A file or folder in an archive.

    Attributes:
        name: Path as stored in the archive.
        size: Size in bytes; 0 for a folder.
        kind: `file`, `folder`, or a description of another kind for error messages.
        open: Returns the content as a stream; None if tarfile does not see a file.
    """

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes] | None]


class _SmallReads(BufferedReader):
    """A file that reads at most `_CHUNK` bytes at once, because tarfile reads any stated length."""

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or not 0 <= size <= _CHUNK
        return super().read(_CHUNK if whole else size)


def unpack(archive: Path, folder: Path, *, advance: Callable[[int], object]) -> dict[str, int]:
    """Unpacks a .zip file or an uncompressed tar file.

    Args:
        archive: The archive. The suffix `.zip` decides the format.
        folder: The new folder for the files. It must not exist.
        advance: Called with the number of bytes of each piece that was written.

    Returns:
        The size of each file in bytes, by its path in the archive.

    Raises:
        DownloadError: The archive is damaged or has a forbidden member.
        StorageError: The folder cannot be written, or the disk is too full.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                return _unpack(archive, _zip_members(opened), folder, advance)
        # Not "r:*": a compressed tar may unpack to any size.
        with (
            _SmallReads(archive.open("rb", buffering=0)) as file,
            tarfile.open(archive, "r:", file) as opened,
        ):
            return _unpack(archive, _tar_members(opened), folder, advance)
    except OSError as error:
        raise StorageError(
            f"cannot be unpacked ({error.strerror})",
            file=archive,
            remedy=f"Check that {folder.parent} is writable and that the disk is not full",
        ) from None
    except _DAMAGE as error:
        raise DownloadError(f"is damaged: {error}", file=archive) from None


def merge(source: Path, target: Path) -> None:
    """Moves the content of a folder into another folder, without changing existing files.

    Args:
        source: The folder to move from, on the same file system as the target.
        target: The folder to move into. It is created if it does not exist.

    Raises:
        StorageError: A file in the target differs from the file of the same name in the source, in
            which case nothing was moved; or the target cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path, place in list(_moves(source, target)):
            path.rename(place)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})",
            file=error.filename2 or error.filename or target,
            remedy="Choose another folder, or make this one writable",
        ) from None


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Archives that were not created on Unix have no mode.
        mode = S_IFMT(info.external_attr >> 16)
        kind = "folder" if info.filename.endswith("/") else "file"
        if kind == "file" and mode and not S_ISREG(mode):
            kind = "a link or special file"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "not compressed by deflate"
        yield _Member(info.filename, info.file_size, kind, partial(opened.open, info))


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        kind = "folder" if info.isdir() else "a link or special file"
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse():
            kind = "file"
        # A negative size would lead back to an earlier header, in an endless loop.
        size = info.size if kind == "file" else min(info.size, 0)
        yield _Member(info.name, size, kind, partial(opened.extractfile, info))


def _unpack(
    archive: Path,
    members: Iterable[_Member],
    folder: Path,
    advance: Callable[[int], object],
) -> dict[str, int]:
    files, folders = _check_members(archive, members)
    size = sum(member.size for member in files.values())
    require_room(folder.parent, size, purpose=f"the content of {archive.name}", remedy=MORE_ROOM)
    folder.mkdir()
    for path in folders:
        (folder / path).mkdir(parents=True, exist_ok=True)
    for path, member in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        _write(archive, member, folder / path, advance)
    return {str(path): member.size for path, member in files.items()}


def _check_members(
    archive: Path, members: Iterable[_Member]
) -> tuple[dict[PurePosixPath, _Member], list[PurePosixPath]]:
    """Returns the files of an archive by path, and its folders.

    Raises:
        DownloadError: A member is forbidden.
    """
    files: dict[PurePosixPath, _Member] = {}
    folders: list[PurePosixPath] = []
    archive_bytes = archive.stat().st_size
    left = _MAX_RATIO * archive_bytes
    most = min(_MAX_MEMBERS, archive_bytes // _MIN_MEMBER_BYTES)
    for number, member in enumerate(members, start=1):
        path = PurePosixPath(member.name)
        left -= member.size
        if member.kind not in ("file", "folder"):
            fault = f"is {member.kind}"
        elif not member.name.isprintable() or "\\" in member.name:
            fault = "has a name that is not a plain path"
        elif path.is_absolute() or ".." in path.parts:
            fault = "would be written outside its folder"
        elif path in files or (member.kind == "file" and not path.parts):
            fault = "is in the archive twice"
        elif number > most or left < 0 or member.size < 0:
            fault = "is too much for an archive of this size"
        elif member.kind == "file":
            files[path] = member
            continue
        else:
            folders.append(path)
            continue
        raise DownloadError(
            f"{fault}, which is not allowed", file=archive, position=repr(member.name)
        )
    for path in (*files, *folders):
        if not files.keys().isdisjoint(path.parents):
            raise DownloadError(
                "is inside a file, which is not allowed", file=archive, position=repr(str(path))
            )
    return files, folders


def _write(archive: Path, member: _Member, path: Path, advance: Callable[[int], object]) -> None:
    left = member.size
    with member.open() or BytesIO() as source, path.open("xb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
            advance(len(chunk))
    if left:
        raise DownloadError(
            "does not have the size that the archive states",
            file=archive,
            position=repr(member.name),
        )


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yields (source, target) of each move. A folder that is not in the target moves as a whole."""
    for path in sorted(source.iterdir(), key=lambda path: (path.name in _LAST, path.name)):
        place = target / path.name
        if not os.path.lexists(place):
            yield path, place
        elif path.is_dir() and place.is_dir():
            yield from _moves(path, place)
        elif path.is_dir() or not place.is_file() or not filecmp.cmp(path, place, shallow=False):
            raise StorageError(
                "differs from the file in the archive, and is not overwritten",
                file=place,
                remedy="Move it away, or choose another folder",
            )
