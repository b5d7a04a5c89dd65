"""Reads the files of datasets, also those in a .zip archive.

A file in an archive is named by a path through the archive: `photos.zip/images/1.jpg`. Nothing is
unpacked and nothing is written.
"""

import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from multibox.errors import DataError

_RANKED = (".tiff", ".tif", ".webp", ".bmp", ".png", ".jfif", ".jpe", ".jpeg", ".jpg")
SUFFIXES = {suffix: number for number, suffix in enumerate(_RANKED, start=1)}
"""The suffixes of images. If several images have one stem, the highest number here wins."""

_MAX_MEMBERS = 5_000_000
_PIECE_BYTES = 1 << 20
# What `zipfile` raises. It looks for a member before the start of the file if its offset is wrong.
_DAMAGED = (
    *(BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError),
)


class FileFacts(NamedTuple):
    """Size and time of a file, which change when its content changes.

    Attributes:
        size: Size in bytes.
        changed: Time of the last change, in nanoseconds. For a file in an archive, the archive's.
    """

    size: int
    changed: int


class _Archive(NamedTuple):
    """An open .zip archive.

    Attributes:
        file: The archive.
        members: The files in it by path.
        folders: The names in each folder, by the folder's path. The top is the empty path.
    """

    file: ZipFile
    members: Mapping[str, ZipInfo]
    folders: Mapping[str, tuple[str, ...]]


def file_facts(path: Path, *, limit: int) -> FileFacts:
    """Returns size and time of a regular file of at most `limit` bytes.

    Raises:
        DataError: The file does not exist, is larger, or is not a regular file. Reading a pipe
            would block forever.
    """
    inside = _inside_archive(path)
    if inside:
        archive, member = inside
        info = _open(archive).members.get(member)
        if info is None:
            raise _unreadable(path, FileNotFoundError())
        facts = FileFacts(info.file_size, archive.stat().st_mtime_ns)
    else:
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                "is not a regular file",
                kind="not-a-file",
                file=path,
                remedy="Replace it with a file",
            )
        facts = FileFacts(status.st_size, status.st_mtime_ns)
    if facts.size > limit:
        reason = f"has {facts.size} bytes, but the limit is {limit}"
        raise DataError(
            reason, kind="file-too-large", file=path, remedy="Check that it is the right file"
        )
    return facts


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Returns the content of a regular file of at most `limit` bytes.

    Raises:
        DataError: `file_facts` rejects the file, or it cannot be read.
    """
    file_facts(path, limit=limit)
    if _inside_archive(path):
        with _open_member(path) as stream:
            return stream.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_ends(path: Path, *, head: int, tail: int, limit: int) -> tuple[bytes, bytes]:
    """Returns the first `head` bytes and the last `tail` bytes of a regular file.

    Raises:
        DataError: `file_facts` rejects the file, or it cannot be read.
    """
    length = file_facts(path, limit=limit).size
    if _inside_archive(path):
        with _open_member(path) as stream:
            start = end = stream.read(head)
            # The member may be much larger than the archive.
            while piece := stream.read(_PIECE_BYTES):
                end = (end + piece)[-tail:]
            return start, end[-tail:]
    try:
        with path.open("rb") as stream:
            start = stream.read(head)
            stream.seek(-min(length, tail), os.SEEK_END)
            return start, stream.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def list_folder(folder: Path, *, missing_ok: bool = True) -> list[Path]:
    """Returns the sorted content of a folder.

    `Path.glob` would treat a folder that cannot be listed as empty.

    Args:
        folder: The folder or .zip archive.
        missing_ok: Whether a folder that does not exist counts as empty.

    Raises:
        DataError: The folder cannot be listed.
    """
    inside = _inside_archive(folder, whole=True)
    if inside:
        archive, member = inside
        names = _open(archive).folders.get(member)
        if names is None and not missing_ok:
            raise _unreadable(folder, FileNotFoundError())
        return [folder / name for name in names or ()]
    try:
        # By name, which is ten times faster than by path and gives the same order.
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError | NotADirectoryError):
            return []
        raise _unreadable(folder, error) from error


def is_file(path: Path) -> bool:
    """Whether a path names a file, on the disk or in an archive.

    Raises:
        PermissionError: The user may not enter the folder.
    """
    inside = _inside_archive(path)
    return inside[1] in _open(inside[0]).members if inside else path.is_file()


def is_folder(path: Path) -> bool:
    """Whether a path names a folder, on the disk or in an archive, or an archive.

    Raises:
        PermissionError: The user may not enter the folder.
    """
    inside = _inside_archive(path, whole=True)
    return inside[1] in _open(inside[0]).folders if inside else path.is_dir()


def walk(root: Path) -> list[Path]:
    """Returns all files below a folder, or in an archive, sorted by path.

    Hidden files and folders are left out, and those that macOS adds to archives. Links to folders
    are followed, but no folder is listed twice.

    Raises:
        DataError: A folder cannot be listed.
    """
    if _inside_archive(root, whole=True):
        return sorted(root / member for member in _open(root).members)
    found, entered = list[Path](), set[tuple[int, int]]()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_refuse_listing):
        here = Path(folder)
        status = here.stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # In a fixed order, because a folder that two links lead to is listed at the first one.
        folders[:] = sorted(filter(_is_visible, folders))
        found += (here / name for name in filter(_is_visible, names))
    return sorted(found)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "lost+found")


def _refuse_listing(error: OSError) -> None:
    raise _unreadable(Path(error.filename), error) from error


def _inside_archive(path: Path, *, whole: bool = False) -> tuple[Path, str] | None:
    """Returns the archive that a path leads through and the rest of the path.

    Args:
        path: Any path.
        whole: Whether the path may be the archive itself. Then the rest is empty.
    """
    # Every image of every step comes here, and taking a path apart takes time.
    if ".zip" not in str(path).lower():
        return None
    for archive in (path, *path.parents) if whole else path.parents:
        if archive.suffix.lower() == ".zip" and archive.is_file():
            rest = path.relative_to(archive).as_posix()
            return archive, "" if rest == "." else rest
    return None


def _open(path: Path) -> _Archive:
    status = path.stat()
    # Processes must not share a file position, so each opens the archive itself.
    return _open_once(path, status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=4)
def _open_once(path: Path, _changed: int, _size: int, _process: int) -> _Archive:
    try:
        file = ZipFile(path)
    except (OSError, BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(
            f"is not a .zip archive that can be read: {error}",
            kind="archive-damaged",
            file=path,
            remedy="Download or export it again",
        ) from None
    infos = file.infolist()
    if len(infos) > _MAX_MEMBERS:
        reason = f"has {len(infos)} files, but the limit is {_MAX_MEMBERS}"
        remedy = "Unpack it, and use a part of it"
        raise DataError(reason, kind="archive-too-large", file=path, remedy=remedy)
    members = dict[str, ZipInfo]()
    folders: dict[str, dict[str, None]] = {"": {}}
    for info in infos:
        member = PurePosixPath(info.filename)
        outside = member.is_absolute() or ".." in member.parts
        # A damaged archive may have a member without a name.
        if not info.filename or info.is_dir() or outside or not all(map(_is_visible, member.parts)):
            continue
        members[member.as_posix()] = info
        for below in (member, *member.parents[:-1]):
            above = below.parent.as_posix()
            folders.setdefault("" if above == "." else above, {})[below.name] = None
    return _Archive(file, members, {name: tuple(sorted(found)) for name, found in folders.items()})


@contextmanager
def _open_member(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file in an archive. No more bytes are read than the archive declares.

    Raises:
        DataError: It is encrypted, damaged, or compressed with another method than Deflate. Other
            methods may need much memory, because `zipfile` decompresses whole blocks.
    """
    archive, member = _inside_archive(path) or (path, "")
    opened = _open(archive)
    info = opened.members[member]
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise DataError(
            f"is compressed with method {info.compress_type} of .zip",
            kind="archive-compression",
            file=path,
            remedy="Make the archive again with the method Deflate",
        )
    try:
        with opened.file.open(info) as stream:
            yield stream
    except _DAMAGED as bad:
        encrypted = bool(info.flag_bits & 1)
        raise DataError(
            "is encrypted" if encrypted else f"is damaged: {bad}",
            kind="archive-encrypted" if encrypted else "archive-damaged",
            file=path,
            remedy="Make the archive again" + (" without a password" if encrypted else ""),
        ) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return DataError(
            f"cannot be read: {error.strerror}",
            kind="unreadable",
            file=path,
            remedy="Check the path and its permissions",
        )
    kind = "annotation-missing" if path.suffix == ".xml" else "image-missing"
    similar = " and ".join(similar_files(path))
    reason = f"does not exist, but the folder has {similar}" if similar else "does not exist"
    return DataError(reason, kind=kind, file=path, remedy="Check the path")


def similar_files(path: Path) -> list[str]:
    """Returns the names of files like a missing one, with another suffix or in another case.

    The folder is not listed, because that would take long if many files are missing.
    """
    stems = {path.stem, path.stem.lower(), path.stem.upper()}
    suffixes = {path.suffix, *SUFFIXES}
    names = {f"{stem}{end}" for stem in stems for s in suffixes for end in (s.lower(), s.upper())}
    return sorted(name for name in names if name and is_file(path.parent / name))
