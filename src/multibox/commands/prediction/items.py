"""References to images and videos, and how the bytes of an image are read.

A reference is small and can be sent to another process. It does not hold pixels.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import UInt8

from multibox.commands.prediction.remote import read_remote
from multibox.data.files import read_bytes
from multibox.data.images import MAX_BYTES, decode_image
from multibox.errors import DataError

Fetch: TypeAlias = Callable[[str], bytes]
"""Returns what an http(s) address answers. Raises MultiboxError."""

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)(?:::|://)")
_MAX_KEY_CHARACTERS = 100


class ImageRef(NamedTuple):
    """Where an image is.

    Attributes:
        name: The image as it is called in results and messages.
        address: Path or address of the file. It may be a tar shard that contains the image.
        start: Offset of the image in the tar shard in bytes, or None if the file is the image.
        size: Size of the image in the tar shard in bytes.
        fault: Why the image cannot be read, or an empty text.
    """

    name: str
    address: str
    start: int | None = None
    size: int = 0
    fault: str = ""


class VideoRef(NamedTuple):
    """Where a video is.

    Attributes:
        name: The video as it is called in results and messages.
        address: Path or address, or the number of a camera.
        live: Whether it is a camera or a stream, which may never end.
    """

    name: str
    address: str
    live: bool = False


def scheme_of(address: str) -> str:
    """Returns the scheme of an address in lower case, or an empty text for a path."""
    found = _SCHEME.match(address)
    return found[1].lower() if found else ""


def read_encoded(ref: ImageRef, fetch: Fetch) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        MultiboxError: The image cannot be read.
    """
    if ref.fault:
        raise DataError(ref.fault, kind="unreadable", file=ref.name)
    scheme = scheme_of(ref.address)
    if ref.start is not None and ref.size > MAX_BYTES:
        reason = f"has {ref.size} bytes, but the limit is {MAX_BYTES}"
        raise DataError(reason, kind="file-too-large", file=ref.name)
    if scheme in ("http", "https"):
        return fetch(ref.address)
    if scheme:
        return read_remote(ref.address, start=ref.start, size=ref.size, limit=MAX_BYTES)
    if ref.start is None:
        return read_bytes(Path(ref.address), limit=MAX_BYTES)
    try:
        with Path(ref.address).open("rb") as file:
            file.seek(ref.start)
            return file.read(ref.size)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise DataError(reason, kind="unreadable", file=ref.name) from None


def read_pixels(ref: ImageRef, fetch: Fetch) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an image.

    Raises:
        MultiboxError: The image cannot be read or decoded.
    """
    return decode_image(read_encoded(ref, fetch), file=ref.name)


def stem_of(ref: ImageRef | VideoRef) -> str:
    """Returns the name of an image or video without folder and suffix, for names of files.

    Only the names of files on this disk are kept as they are. Others may have characters that a
    file name cannot have.
    """
    if isinstance(ref, ImageRef) and ref.start is None and not scheme_of(ref.address):
        return Path(ref.name).stem
    if isinstance(ref, VideoRef) and not ref.live and not scheme_of(ref.address):
        return Path(ref.name).stem
    path = ref.name
    if scheme_of(path):
        try:
            parts = urlsplit(path)
            path = unquote(parts.path).rstrip("/") or parts.netloc
        except ValueError:
            pass
    plain = re.sub(r"[^\w.-]|\.(?=\.)|^\W", "_", PurePosixPath(path).stem)
    return plain.strip("._")[:_MAX_KEY_CHARACTERS] or "image"


def name_results(refs: Sequence[ImageRef | VideoRef]) -> list[str]:
    """Returns the name of each image's results: its stem, numbered if several images share it.

    Case is ignored, because on some disks names that differ only in case are the same file.
    """
    stems = [stem_of(ref) for ref in refs]
    taken = {stem.casefold() for stem in stems}
    numbers: dict[str, int] = {}
    names: list[str] = []
    for stem in stems:
        name, number = stem, numbers.get(stem.casefold(), 0)
        if number:
            while name.casefold() in taken:
                number += 1
                name = f"{stem}-{number}"
        numbers[stem.casefold()] = max(number, 1)
        taken.add(name.casefold())
        names.append(name)
    return names
