"""Detects damaged files with a manifest, which lists the size and SHA-256 of each file.

`write` syncs all files to the disk. `read` and `verified` raise an error if a single bit of a file
or of the manifest has changed.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from multibox.errors import StorageError, WeightsError
from multibox.storage.disk import sync_folder

FORMAT = 1
NAME = "manifest.json"

_CHUNK = 2**20
"""Number of bytes that are written and hashed at a time, while they are in the CPU's cache."""

Entry: TypeAlias = dict[str, int | str]


class Manifest(NamedTuple):
    """The content of a manifest.

    Attributes:
        step: Number of completed steps.
        files: File name to `size` in bytes and `sha256` in hexadecimal digits.
    """

    step: int
    files: dict[str, Entry]


def write(
    folder: Path, step: int, contents: Iterable[tuple[str, Iterable[bytes | memoryview]]]
) -> None:
    """Writes files and their manifest, and waits until they and their names are on the disk.

    Args:
        folder: An empty folder.
        step: Number of completed steps.
        contents: Pairs of a file name and the parts of its content. Parts are written one by one,
            so a generator does not need to hold all of them.

    Raises:
        OSError: The disk is full or fails.
    """
    files = {name: _write_file(folder / name, parts) for name, parts in contents}
    manifest = {"format": FORMAT, "step": step, "files": files}
    _write_file(folder / NAME, [encoded(manifest)])
    sync_folder(folder)


def read(folder: Path, names: set[str]) -> Manifest:
    """Returns the manifest of a folder.

    Args:
        folder: The folder.
        names: The file names that the manifest must list, and no others.

    Raises:
        WeightsError: The manifest is missing, damaged, of an unknown format or lists other files.
        StorageError: This user may not read it.
    """
    path = folder / NAME
    content = _content(path)
    value = decoded(path, content)
    if value.get("format") != FORMAT:
        raise WeightsError(
            f"has format {value.get('format')!r}, but this version reads {FORMAT}",
            file=path,
            remedy="Use the version of multibox that wrote it",
        )
    step, files = value.get("step"), value.get("files")
    # The manifest has no hash of its own. A changed bit is noticed here or when a file is compared.
    if (
        content != encoded(value)
        or type(step) is not int
        or not isinstance(files, dict)
        or files.keys() != names
        or not all(map(_is_entry, files.values()))
    ):
        raise WeightsError("is damaged: it has changed since it was written", file=path)
    return Manifest(step, files)


def verified(path: Path, entry: Entry) -> bytes:
    """Returns the content of a file after comparing it with its entry in the manifest.

    Raises:
        WeightsError: The file is missing or differs.
        StorageError: This user may not read the file.
    """
    content = _content(path)
    if len(content) != entry.get("size"):
        raise WeightsError(
            f"has {len(content)} bytes, but the manifest lists {entry.get('size')}", file=path
        )
    if entry.keys() != {"size", "sha256"} or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise WeightsError("has changed: its SHA-256 differs from the manifest's", file=path)
    return content


def encoded(value: object) -> bytes:
    """Returns a value as JSON. Equal values give equal bytes.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def decoded(path: Path, content: bytes) -> dict[str, Any]:
    """Returns the JSON object that a file contains.

    Raises:
        WeightsError: The content is not a JSON object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise WeightsError("is not a JSON object", file=path)
    return value


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"size", "sha256"}
        and type(value["size"]) is int
        and type(value["sha256"]) is str
    )


def _write_file(path: Path, parts: Iterable[bytes | memoryview]) -> Entry:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                chunk = part[start : start + _CHUNK]
                file.write(chunk)
                digest.update(chunk)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise WeightsError("is missing", file=path) from None
    except OSError as error:
        # A bad sector means damage. A file without read permission may be intact.
        kind = WeightsError if error.errno == errno.EIO else StorageError
        raise kind(f"cannot be read ({error.strerror})", file=path) from None
