"""Unpacks archives of data, and moves their files into a folder that may have files already.

The list of files is checked before the first byte is written. An archive may contain plain files
and folders only, below the folder that it is unpacked to, each of them once, and no more bytes than
is plausible for its size. Its owners, permissions and times are ignored.
"""

import filecmp
import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
"""Largest ratio of unpacked to packed bytes. JSON has about 5, a decompression bomb hundreds."""
_CHUNK = 1 << 20
_MIN_MEMBER_BYTES = 64
"""Fewer bytes than any member takes in an archive: 512 in a tar, 76 in a zip."""
# Errors that the standard library raises for a damaged header.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, RuntimeError, ValueError, LookupError, ArithmeticError),
)
_LAST = ("ImageSets", "annotations")
"""Moved last: readers look for these first, so half a dataset does not look like a whole one."""


class _Member(NamedTuple):
    """A file or folder in an archive.

    Attributes:
        name: The name in the archive.
        size: In bytes; 0 for a folder.
        kind: `file`, `folder`, or a description of anything else.
        open: Returns the content. tarfile returns None if this is not a file.
    """

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes] | None]


class _SmallReads(BufferedReader):
    """A file that returns small pieces, because tarfile reads as much as a header claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or not 0 <= size <= _CHUNK
        return super().read(_CHUNK if whole else size)


def unpack(archive: Path, folder: Path, *, advance: Callable[[int], object]) -> dict[str, int]:
    """Unpacks a .zip or an uncompressed tar, and returns the sizes of its files by path.

    Args:
        archive: The file.
        folder: The new folder. It must not exist.
        advance: Called with the number of bytes of each piece that is written.

    Raises:
        DownloadError: The archive is damaged, or contains something that is refused.
        StorageError: The folder cannot be written, or the disk has no room.
    """
    with _unpacking(archive, folder):
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                return _unpack(archive, _zip_members(opened), folder, advance)
        # Not "r:*": a compressed tar may have any size when unpacked.
        with (
            _SmallReads(archive.open("rb", buffering=0)) as file,
            tarfile.open(archive, "r:", file) as opened,
        ):
            return _unpack(archive, _tar_members(opened), folder, advance)


def unpack_member(
    archive: Path, name: str, target: Path, *, advance: Callable[[int], object]
) -> None:
    """Writes one file of a .tar.gz to another path. Its other members are ignored.

    Args:
        archive: The .tar.gz.
        name: Name of the file in the archive, without its folder.
        target: The path to write. A file there is overwritten.
        advance: Called with the number of bytes of each piece that is written.

    Raises:
        DownloadError: The archive is damaged or does not contain the file.
        StorageError: The target cannot be written, or the disk has no room.
    """
    tar = target.with_name(f"{target.name}.tar")
    with _unpacking(archive, target):
        try:
            _decompress(archive, tar)
            with (
                _SmallReads(tar.open("rb", buffering=0)) as file,
                tarfile.open(tar, "r:", file) as opened,
            ):
                for member in _tar_members(opened):
                    if member.size < 0:
                        break
                    if member.kind == "file" and PurePosixPath(member.name).name == name:
                        target.unlink(missing_ok=True)
                        return _write(archive, member, target, advance)
        finally:
            tar.unlink(missing_ok=True)
    raise DownloadError(f"does not contain {name}", file=archive)


def merge(source: Path, target: Path) -> None:
    """Moves the content of a folder into another one, and changes no existing file.

    Args:
        source: A folder on the same file system as the target.
        target: The other folder. It is made if it does not exist.

    Raises:
        StorageError: A file exists in the target with different content, and nothing was moved; or
            the target cannot be written.
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


@contextmanager
def _unpacking(archive: Path, target: Path) -> Iterator[None]:
    """Raises the errors of the standard library as our own."""
    try:
        yield
    except (gzip.BadGzipFile, *_DAMAGE) as error:
        raise DownloadError(f"is damaged: {error}", file=archive) from None
    except OSError as error:
        raise StorageError(
            f"cannot be unpacked ({error.strerror})",
            file=archive,
            remedy=f"Check that {target.parent} is writable and its disk is not full",
        ) from None


def _decompress(archive: Path, target: Path) -> None:
    """Writes the content of a .gz file, if it is not much larger than the file."""
    left = _MAX_RATIO * archive.stat().st_size
    with gzip.open(archive) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise DownloadError(
                    "contains more than an archive of this size can contain", file=archive
                )
            file.write(chunk)


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        # Archives that were not made on Unix have no mode.
        mode = S_IFMT(info.external_attr >> 16)
        kind = "folder" if info.filename.endswith("/") else "file"
        if kind == "file" and mode and not S_ISREG(mode):
            kind = "a link or special file"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "compressed by a method other than deflate"
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
    """Returns the files of an archive by path, and its folders. Refuses forbidden members."""
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
            fault = "is more than an archive of this size can contain"
        elif member.kind == "file":
            files[path] = member
            continue
        else:
            folders.append(path)
            continue
        raise DownloadError(f"{fault}, which is refused", file=archive, position=repr(member.name))
    for path in (*files, *folders):
        if not files.keys().isdisjoint(path.parents):
            raise DownloadError(
                "lies below a file, which is refused", file=archive, position=repr(str(path))
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
            "does not have the size that the archive says", file=archive, position=repr(member.name)
        )


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yields sources and targets: whole folders if the target has none of that name."""
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
