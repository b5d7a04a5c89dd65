"""Reads stored pixels: JPEG, PNG, BMP and WebP, recognised by their content.

A file is refused rather than repaired: half a photograph with grey below is a wrong example that
nobody sees. Annotations are made on the stored pixels, so that the orientation in a file's EXIF
part is not applied. The size in the header decides before a decoder sees the file.
"""

import os
import stat
import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from multibox.errors import DataError

MAX_PIXELS = 50_000_000
MAX_BYTES = 1 << 28
"""Of a file."""
SUFFIXES = {".webp": 1, ".bmp": 2, ".png": 3, ".jpeg": 4, ".jpg": 5}
"""Of the names of images that are found by their stems; of several the highest is taken."""

# A progressive JPEG is decoded once per scan: thousands in a small file would take minutes.
_MAX_SCANS = 100
# A block of 64 pixels takes a bit at the least; twice that.
_JPEG_PIXELS_PER_BYTE = 1024
_HEAD_BYTES = 1 << 15
# Cameras append a few bytes after the end marker.
_TAIL_BYTES = 64 + 12
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_INTACT = "Replace it by an intact copy"

_Format = Literal["JPEG", "PNG", "BMP", "WebP"]


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an image file, as stored: without its EXIF orientation.

    Raises:
        DataError: If the file cannot be read, or as `decode_image` has it.
    """
    return decode_image(read_bytes(path, limit=MAX_BYTES), file=path)


def decode_image(data: bytes, *, file: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an encoded image; grey, CMYK and palettes become RGB.

    Transparency is dropped and 16 bits are reduced to 8; of an animation the first picture
    is taken.

    Args:
        data: The bytes of a whole file.
        file: Its name, for the error.

    Raises:
        DataError: If the format is none of the four, the header declares more than
            `MAX_PIXELS`, or the data are damaged or cut short.
    """
    width, height = image_size(data, file=file)
    image = None
    if _format(data) != "JPEG":
        image = _decode_other(data)
    elif width * height <= _JPEG_PIXELS_PER_BYTE * len(data):
        image = _decode_jpeg(data, file)
    if image is None or image.shape != (height, width, 3):
        raise DataError(
            "its pixels are damaged or cut short", kind="image-damaged", file=file, remedy=_INTACT
        )
    return image


def image_size(data: bytes, *, file: Path) -> tuple[int, int]:
    """Returns (width, height) in pixels, from the header alone.

    Args:
        data: The file's first bytes; a JPEG's may need to hold its EXIF part.
        file: Its name, for the error.

    Raises:
        DataError: If the format is none of the four, the header is damaged, or it declares no
            pixels or more than `MAX_PIXELS`.
    """
    kind = _format(data)
    if kind is None:
        found = "is empty" if not data else "is neither JPEG, PNG, BMP nor WebP"
        raise DataError(
            found,
            kind="image-format" if data else "image-empty",
            file=file,
            remedy="Convert the image to one of these formats",
        )
    try:
        width, height = _HEADERS[kind](data)
    except (struct.error, ValueError) as error:
        raise DataError(
            f"its {kind} header is damaged", kind="image-header", file=file, remedy=_INTACT
        ) from error
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"its header declares {width} x {height} pixels, the limit is {MAX_PIXELS}",
            kind="image-too-large",
            file=file,
            remedy="Scale the image down",
        )
    return width, height


def check_image(path: Path) -> tuple[int, int]:
    """Returns (width, height) of an image file after a look at both its ends.

    Where the last bytes do not show that the file is whole, it is decoded: a BMP, a WebP, or
    a JPEG with much appended to it. Damage in the middle is left for `read_image` to find.

    Raises:
        DataError: If the file cannot be read, is cut short, or as `image_size` has it.
    """
    length = _regular_size(path, MAX_BYTES)
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            stream.seek(-min(length, _TAIL_BYTES), os.SEEK_END)
            tail = stream.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        size = image_size(head, file=path)
    except DataError:
        size = image_size(read_bytes(path, limit=MAX_BYTES), file=path)
    marker = _END_MARKERS.get(_format(head) or "")
    if marker is None or marker not in tail:
        read_image(path)
    return size


def find_images(folder: Path) -> dict[str, Path]:
    """Returns the image files of a folder by stem; of several with one stem, a JPEG first."""
    try:
        paths = sorted(folder.iterdir(), reverse=True)
    except OSError as error:
        raise _unreadable(folder, error) from error
    ranked = sorted(paths, key=lambda path: SUFFIXES.get(path.suffix.lower(), 0))
    return {path.stem: path for path in ranked if path.suffix.lower() in SUFFIXES}


def list_folder(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted; nothing if there is no such folder.

    `Path.glob` would take a folder that cannot be listed for an empty one.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Returns the content of a regular file of at most `limit` bytes.

    Raises:
        DataError: If there is no such file, it is larger, or is not a regular one: a pipe
            would block for ever.
    """
    _regular_size(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _regular_size(path: Path, limit: int) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            "is not a regular file", kind="not-a-file", file=path, remedy="Put a file in its place"
        )
    if status.st_size > limit:
        reason = f"has {status.st_size} bytes, the limit is {limit}"
        raise DataError(
            reason, kind="file-too-large", file=path, remedy="Check that it is the right file"
        )
    return status.st_size


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        kind = "annotation-missing" if path.suffix == ".xml" else "image-missing"
        return DataError("does not exist", kind=kind, file=path, remedy="Check the path")
    return DataError(
        f"cannot be read: {error.strerror}",
        kind="unreadable",
        file=path,
        remedy="Check the path and its permissions",
    )


def _decode_jpeg(data: bytes, file: Path) -> UInt8[np.ndarray, "H W 3"]:
    # As `data.count(b"\xff\xda")`, in a sixth of its time, which is a tenth of decoding's.
    codes = np.frombuffer(data, np.uint8)
    scans = np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == 0xDA))
    if scans > _MAX_SCANS:
        reason = f"has {scans} scans, the limit is {_MAX_SCANS}"
        raise DataError(reason, kind="too-many-scans", file=file, remedy="Save the image anew")
    try:
        # Strict: libjpeg otherwise only warns of missing data, and fills them with grey.
        image: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        raise DataError(
            f"its pixels are damaged: {error}", kind="image-damaged", file=file, remedy=_INTACT
        ) from error
    return image


def _decode_other(data: bytes) -> np.ndarray | None:
    if _format(data) == "PNG":
        data = _whole_png(data)
    if not data:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _format(data: bytes) -> _Format | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return None


def _jpeg_header(data: bytes) -> tuple[int, int]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return width, height


def _png_header(data: bytes) -> tuple[int, int]:
    name, width, height = struct.unpack_from(">4sII", data, 12)
    if name != b"IHDR":
        raise ValueError("no IHDR")
    return width, height


def _whole_png(data: bytes) -> bytes:
    """Returns a PNG as far as its end, or nothing if a chunk leaves the file.

    OpenCV makes room for what a chunk claims to hold, and goes on behind an end that is not empty.
    """
    place, name, length = 8, b"", 0
    while name != b"IEND" and place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        place += 12 + length
    return data[:place] if name == b"IEND" and length == 0 and place <= len(data) else b""


def _bmp_header(data: bytes) -> tuple[int, int]:
    (length,) = struct.unpack_from("<I", data, 14)
    if length == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    if not 40 <= length <= 124:
        raise ValueError("no bitmap header")
    width, height = struct.unpack_from("<ii", data, 18)
    # A negative height says that the rows go from top to bottom.
    return width, abs(height)


def _webp_header(data: bytes) -> tuple[int, int]:
    name, start = struct.unpack_from("<4s4x4s", data, 12)
    if name == b"VP8X":
        low_x, high_x, low_y, high_y = struct.unpack_from("<HBHB", data, 24)
        return low_x + (high_x << 16) + 1, low_y + (high_y << 16) + 1
    if name == b"VP8L" and start[0] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no frame")


_HEADERS = {"JPEG": _jpeg_header, "PNG": _png_header, "BMP": _bmp_header, "WebP": _webp_header}
