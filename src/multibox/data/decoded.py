"""Stores decoded training images in a file of the run folder, so that each is decoded only once.

The file holds the pixels of all images, then an index, then a few bytes that give the length of the
index. It is written under another name and renamed when it is complete. It is used only if the
annotations, the size and modification time of each image file, and the versions of the decoders are
unchanged. A process compares an image's checksum when it first reads the image. If anything does
not match, the image is decoded as usual, so samples have the same bits with and without this file.

Images are read, not mapped into memory. The kernel caches the file for all processes in both
cases, but a failed read is an error that can be handled, while a failed mapping ends the process.
"""

import errno
import hashlib
import json
import os
import shutil
import struct
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.data.dataset import Annotation, Dataset
from multibox.data.files import file_facts
from multibox.data.images import MAX_BYTES, read_image
from multibox.errors import DataError
from multibox.hardware import usable_cores

NAME = "decoded-images"
"""The name of the file in the run folder."""
_PARTIAL = f".{NAME}.partial"

# The last bytes of the file: the length of the index, and the file format.
_END = struct.Struct("<Q16s")
_FORM = b"multibox-pixels1"
_THREADS = 8


class _Entry(NamedTuple):
    """An image's offset in the file, and its checksum. The checksum is None if it is not stored."""

    start: int
    checksum: int | None


class DecodedImages:
    """The decoded images of a training split.

    Args:
        path: The file.
        entries: One per image, in dataset order. There are fewer if the size limit was reached.
    """

    def __init__(self, path: Path, entries: tuple[_Entry, ...]) -> None:
        self._path, self._entries = path, entries
        self._sound: set[int] = set()
        # Forked processes share it, because a positional read does not move its offset.
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[object, ...]:
        """Makes a process that is not forked open the file itself."""
        return DecodedImages, (self._path, self._entries)

    def read(self, place: int, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"] | None:
        """Returns an image's RGB pixels, or None if it has to be decoded.

        Args:
            place: The image's index in the dataset.
            annotation: The image's annotation.
        """
        if place >= len(self._entries) or self._entries[place].checksum is None:
            return None
        start, checksum = self._entries[place]
        image = np.empty((annotation.height_px, annotation.width_px, 3), np.uint8)
        try:
            count = os.preadv(self._file, [image.data], start)
        except OSError:
            return None
        if count != image.nbytes:
            return None
        if place not in self._sound:
            if zlib.crc32(image.data) != checksum:
                return None
            self._sound.add(place)
        return image


def decode_into(
    folder: Path, dataset: Dataset, *, limit_bytes: int, say: Callable[[str], None]
) -> DecodedImages | None:
    """Returns the decoded images of a dataset, from an existing file or a new one.

    Args:
        folder: The run folder. No other process writes to it.
        dataset: The images. Only the first ones are stored if the limit is too small for all.
        limit_bytes: The maximum size of the pixels in the file.
        say: Is called with messages: what is done, and why the file could not be written.
    """
    path, count = folder / NAME, _count_fitting(dataset, limit_bytes)
    found = find_decoded(folder, dataset, limit_bytes=limit_bytes)
    if found is not None or not count:
        return found
    size = _starts(dataset.annotations[:count])[-1]
    say(f"Decoding {count} of {len(dataset)} images into {path} ({size / 1e9:.1f} GB)")
    try:
        remove_decoded(folder)
        if size > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(folder / _PARTIAL, dataset, count)
        (folder / _PARTIAL).replace(path)
    except OSError as error:
        say(f"{path} cannot be written ({error.strerror}), so images are decoded each time")
    finally:
        (folder / _PARTIAL).unlink(missing_ok=True)
    return find_decoded(folder, dataset, limit_bytes=limit_bytes)


def find_decoded(folder: Path, dataset: Dataset, *, limit_bytes: int) -> DecodedImages | None:
    """Returns the decoded images in a folder, or None if the file is missing or does not match.

    Args:
        folder: The run folder.
        dataset: The images.
        limit_bytes: The limit that the file was written with.
    """
    path, count = folder / NAME, _count_fitting(dataset, limit_bytes)
    try:
        with path.open("rb") as file:
            whole = file.seek(-_END.size, os.SEEK_END) + _END.size
            length, form = _END.unpack(file.read())
            if form != _FORM or length > whole:
                return None
            start = file.seek(whole - _END.size - length)
            index = json.loads(file.read(length))
        starts = _starts(dataset.annotations[:count])
        if index["key"] != _key(dataset, count) or start != starts[-1]:
            return None
        entries = tuple(map(_Entry, starts, index["checksums"]))
        return DecodedImages(path, entries)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remove_decoded(folder: Path) -> None:
    """Removes the file of decoded images and the incomplete one, if they exist."""
    for name in (NAME, _PARTIAL):
        (folder / name).unlink(missing_ok=True)


def _write(path: Path, dataset: Dataset, count: int) -> None:
    """Writes the first `count` images, several at a time."""
    annotations, key = dataset.annotations[:count], _key(dataset, count)
    starts = _starts(annotations)
    with path.open("wb") as file:

        def store(annotation: Annotation, start: int) -> int | None:
            try:
                image = read_image(annotation.image_path)
            except DataError:
                return None
            if image.shape != (annotation.height_px, annotation.width_px, 3):
                return None
            if os.pwrite(file.fileno(), image.data, start) != image.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return zlib.crc32(image.data)

        threads = ThreadPoolExecutor(min(_THREADS, usable_cores()))
        try:
            checksums = list(threads.map(store, annotations, starts))
        finally:
            threads.shutdown(cancel_futures=True)
        index = json.dumps({"key": key, "checksums": checksums}).encode()
        file.seek(starts[-1])
        file.write(index + _END.pack(len(index), _FORM))
        file.flush()
        os.fsync(file.fileno())


def _bytes(annotation: Annotation) -> int:
    return annotation.width_px * annotation.height_px * 3


def _starts(annotations: Sequence[Annotation]) -> list[int]:
    """Returns the offsets of the images' pixels, and last the offset at which the pixels end."""
    return list(accumulate(map(_bytes, annotations), initial=0))


def _count_fitting(dataset: Dataset, limit_bytes: int) -> int:
    """Returns how many images fit into the limit, counted from the first."""
    return bisect_right(_starts(dataset.annotations)[1:], limit_bytes)


def _key(dataset: Dataset, count: int) -> str:
    """Returns a hash of everything that the stored pixels depend on, except the image data."""
    decoders = [version("simplejpeg"), cv2.__version__, version("pillow")]
    digest = hashlib.sha256(json.dumps([dataset.digest, count, decoders]).encode())
    for annotation in dataset.annotations[:count]:
        try:
            found = file_facts(annotation.image_path, limit=MAX_BYTES)
            facts = (str(annotation.image_path.resolve()), *found)
        except DataError:
            facts = (str(annotation.image_path), 0, 0)
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
