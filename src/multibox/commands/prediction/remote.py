"""Lists and reads files at fsspec addresses, such as `s3://bucket/photos/1.jpg`.

fsspec supports many kinds of storage. Most need a further package, which its error names. A
connection is opened only if an address on the command line asks for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from multibox.errors import DataError

_MAGIC = frozenset("*?[")


def list_remote(address: str, *, recursive: bool) -> Iterator[str] | None:
    """Returns the addresses of the files in a folder or of a pattern, or None for a single file.

    Args:
        address: Address of a file or folder, or a pattern with `*`, `?` or `[`.
        recursive: Whether files in folders below the folder are listed too.

    Raises:
        DataError: The address cannot be listed.
    """
    with _reporting(address):
        system, path = fsspec.core.url_to_fs(address)
        if _MAGIC & set(path):
            return iter([system.unstrip_protocol(found) for found in sorted(system.glob(path))])
        if not system.isdir(path):
            return None
    return _walk(system, path, address, recursive=recursive)


def _walk(system: Any, folder: str, address: str, *, recursive: bool) -> Iterator[str]:
    with _reporting(address):
        entries = sorted(system.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
    for entry in entries:
        if entry["type"] == "file":
            yield system.unstrip_protocol(entry["name"])
    for entry in entries:
        # Some object stores list the folder itself.
        inside = entry["name"].rstrip("/") != folder.rstrip("/")
        if recursive and entry["type"] == "directory" and inside:
            yield from _walk(system, entry["name"], address, recursive=True)


def open_remote(address: str) -> Any:
    """Opens a file for reading at any position.

    Raises:
        DataError: The file cannot be opened.
    """
    with _reporting(address):
        system, path = fsspec.core.url_to_fs(address)
        return system.open(path, "rb")


def read_remote(address: str, *, start: int | None, size: int, limit: int) -> bytes:
    """Returns the content of a file, or a part of it.

    Args:
        address: Address of the file.
        start: First byte of the part, or None for the whole file.
        size: Number of bytes of the part.
        limit: Maximum size of the whole file in bytes.

    Raises:
        DataError: The file cannot be read, or is larger than the limit.
    """
    with _reporting(address):
        system, path = fsspec.core.url_to_fs(address)
        end = limit + 1 if start is None else start + size
        content = bytes(system.cat_file(path, start=start or 0, end=end))
    if start is None and len(content) > limit:
        raise DataError(
            f"has more than {limit} bytes",
            kind="file-too-large",
            file=address,
            remedy="Check that it is the right file",
        )
    return content


@contextmanager
def _reporting(address: str) -> Iterator[None]:
    """Turns all errors into `DataError`. The packages behind fsspec raise errors of many types."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        reason, remedy = "does not exist", "Check the address"
    except Exception as error:
        reason = f"cannot be read: {error or type(error).__name__}"
        remedy = "Check the address, the permissions and the package for this kind of storage"
    else:
        return
    raise DataError(reason, kind="unreadable", file=address, remedy=remedy)
