"""Lists the images in tar shards, as webdataset writes them: `.tar` files with images.

Nothing is unpacked. Each image is read from its position in the archive.
"""

import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

from multibox.commands.prediction.items import ImageRef, scheme_of
from multibox.commands.prediction.remote import open_remote
from multibox.data.files import SUFFIXES
from multibox.errors import DataError

_REMEMBERED = 1000
_MAX_READ_BYTES = 1 << 20
# Errors that the standard library raises for a damaged header.
_DAMAGED = (
    *(tarfile.TarError, OSError, EOFError, struct.error),
    *(ValueError, RuntimeError, LookupError, ArithmeticError),
)


def list_tar(address: str) -> Iterator[ImageRef]:
    """Yields the images in a tar shard in their order.

    A member that is not safe to read, and a shard that is damaged, are references with a fault.

    Args:
        address: Path or fsspec address of an uncompressed tar file.
    """
    try:
        with (
            _open(address) as stream,
            tarfile.open(fileobj=cast(Any, _SmallReads(stream)), mode="r:") as archive,
        ):
            for place, member in enumerate(archive, start=1):
                # It would lead back to an earlier header, in an endless loop.
                if member.size < 0:
                    raise ValueError("a member has a negative size")
                # Otherwise the archive keeps all members, and memory grows with their number.
                if place % _REMEMBERED == 0:
                    archive.members = []  # type: ignore[attr-defined]
                path = PurePosixPath(member.name)
                name = f"{address}/{member.name}"
                if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                    continue
                fault = _fault(member, path)
                yield ImageRef(name, address, member.offset_data, member.size, fault)
            # At a damaged header, tarfile ends as at the end of the archive, which is zeros.
            stream.seek(archive.offset)
            if any(stream.read(tarfile.BLOCKSIZE)):
                raise ValueError(f"the header at byte {archive.offset} is damaged")
    except DataError as error:
        yield ImageRef(address, address, 0, 0, error.reason)
    except _DAMAGED as error:
        reason = f"is not a tar file that can be read to its end: {error}"
        yield ImageRef(address, address, 0, 0, f"{reason}. Compressed shards are not read")


class _SmallReads:
    """A file that returns small pieces, because tarfile reads as much as a header claims."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.seek, self.tell = stream, stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(min(size, _MAX_READ_BYTES) if size >= 0 else 0)
        return content


def _fault(member: tarfile.TarInfo, path: PurePosixPath) -> str:
    if not member.isreg() or member.issparse():
        return "is a link or another special file in the archive, which is not followed"
    if path.is_absolute() or ".." in path.parts:
        return "has a name that leads out of the archive"
    return ""


def _open(address: str) -> Any:
    return open_remote(address) if scheme_of(address) else Path(address).open("rb")
