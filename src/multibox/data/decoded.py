"""Decoded training images in a file of the run's own, so that an image is decoded once only.

The file holds the pixels of one image after the other, then what is known of them, then a few bytes
that end it. It is written aside and renamed when it is whole. It is used only if all of these are
still the same: the annotations, each image file's size and time of change, the decoders' versions.
An image's checksum is compared when a process first reads it. Where anything is amiss the image is
decoded as without this file, so that samples have the same bits with it and without.

Images are read, not mapped: the kernel keeps their pages for all processes in either case, and a
read that fails is an error to get over, where a mapping's would end the process.
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
from multibox.data.images import read_image
from multibox.errors import DataError
from multibox.hardware import usable_cores

NAME = "decoded-images"
"""Of the file, in the run's folder."""
_PARTIAL = f".{NAME}.partial"

# Its last bytes: the length of the index, and the form of the file.
_END = struct.Struct("<Q16s")
_FORM = b"multibox-pixels1"
_THREADS = 8


class _Entry(NamedTuple):
    """Where an image begins in the file, and its checksum; None where it is not stored."""

    start: int
    checksum: int | None


class DecodedImages:
    """The images of a training split, as far as they are stored decoded.

    Args:
        path: The file.
        entries: One per image, in the order of the dataset; fewer if the limit was reached.
    """

    def __init__(self, path: Path, entries: tuple[_Entry, ...]) -> None:
        self._path, self._entries = path, entries
        self._sound: set[int] = set()
        # One for a process and those forked from it: a positional read leaves it as it is.
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[object, ...]:
        """A process that is not forked opens the file itself."""
        return DecodedImages, (self._path, self._entries)

    def read(self, place: int, annotation: Annotation) -> UInt8[np.ndarray, "H W 3"] | None:
        """Returns an image's RGB pixels, or None if they have to be decoded.

        Args:
            place: The image's place in the dataset.
            annotation: The image.
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
    """Returns the decoded images of a dataset, from an earlier run's file or a new one.

    Args:
        folder: The run's; nobody else writes to it.
        dataset: Whose images; the first ones, where the limit does not admit all.
        limit_bytes: How large the file may become.
        say: Is told what is done, and why there is no file in the end.
    """
    path, count = folder / NAME, _admitted(dataset, limit_bytes)
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
        say(f"{path} cannot be written ({error.strerror}): images are decoded each time instead")
    finally:
        (folder / _PARTIAL).unlink(missing_ok=True)
    return find_decoded(folder, dataset, limit_bytes=limit_bytes)


def find_decoded(folder: Path, dataset: Dataset, *, limit_bytes: int) -> DecodedImages | None:
    """Returns the decoded images that lie in a folder, or None if they are not these or not whole.

    Args:
        folder: The run's.
        dataset: The images.
        limit_bytes: What the file was admitted when it was written.
    """
    path, count = folder / NAME, _admitted(dataset, limit_bytes)
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
    """Removes what a run may have left of decoded images."""
    for name in (NAME, _PARTIAL):
        (folder / name).unlink(missing_ok=True)


def _write(path: Path, dataset: Dataset, count: int) -> None:
    """Writes the first images, some at a time."""
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
    """Returns where each image's pixels begin; at the end, where the last one's end."""
    return list(accumulate(map(_bytes, annotations), initial=0))


def _admitted(dataset: Dataset, limit_bytes: int) -> int:
    """Returns how many of the images, from the first on, keep within the limit."""
    return bisect_right(_starts(dataset.annotations)[1:], limit_bytes)


def _key(dataset: Dataset, count: int) -> str:
    """Returns a digest of all that decides the stored pixels, short of reading the images."""
    decoders = [version("simplejpeg"), cv2.__version__]
    digest = hashlib.sha256(json.dumps([dataset.digest, count, decoders]).encode())
    for annotation in dataset.annotations[:count]:
        try:
            status = annotation.image_path.stat()
            facts = (str(annotation.image_path.resolve()), status.st_size, status.st_mtime_ns)
        except OSError:
            facts = (str(annotation.image_path), 0, 0)
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
