"""Lists the images in tar shards, as webdataset writes them: `.tar` files with images.

Nothing is unpacked. Each image is read from its position in the archive.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from multibox.commands.prediction.items import ImageRef, scheme_of
from multibox.commands.prediction.remote import open_remote
from multibox.data.files import SUFFIXES
from multibox.errors import DataError

_REMEMBERED = 1000
_DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError)


def list_tar(address: str) -> Iterator[ImageRef]:
    """Yields the images in a tar shard in their order.

    A member that is not safe to read, and a shard that is damaged, are references with a fault.

    Args:
        address: Path or fsspec address of an uncompressed tar file.
    """
    try:
        with _open(address) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for place, member in enumerate(archive, start=1):
                # Otherwise the archive keeps all members, and memory grows with their number.
                if place % _REMEMBERED == 0:
                    archive.members = []  # type: ignore[attr-defined]
                path = PurePosixPath(member.name)
                name = f"{address}/{member.name}"
                if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                    continue
                fault = _fault(member, path)
                yield ImageRef(name, address, member.offset_data, member.size, fault)
    except DataError as error:
        yield ImageRef(address, address, 0, 0, error.reason)
    except _DAMAGED as error:
        reason = f"is not a tar file that can be read to its end: {error}"
        yield ImageRef(address, address, 0, 0, f"{reason}. Compressed shards are not read")


def _fault(member: tarfile.TarInfo, path: PurePosixPath) -> str:
    if not member.isreg() or member.issparse():
        return "is a link or another special file in the archive, which is not followed"
    if path.is_absolute() or ".." in path.parts:
        return "has a name that leads out of the archive"
    return ""


def _open(address: str) -> Any:
    return open_remote(address) if scheme_of(address) else Path(address).open("rb")
