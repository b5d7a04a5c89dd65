"""Decodes image files: JPEG, PNG, BMP, WebP and TIFF, recognised by their content.

Damaged files are rejected, not repaired: a photograph that is half grey would be a wrong training
example that nobody notices. The EXIF orientation is not applied, because annotations refer to the
stored pixels. An image that is too large is rejected by its header, before it is decoded.
"""

import os
import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from multibox.data.files import SUFFIXES, list_folder, read_bytes, read_ends
from multibox.data.tiff import decode_tiff, tiff_number
from multibox.errors import ConfigError, DataError

MAX_PIXELS = 50_000_000
"""The maximum number of pixels of an image, unless `MULTIBOX_MAX_PIXELS` is set."""
MAX_BYTES = 1 << 28
"""The maximum size of an image file."""

# A progressive JPEG is decoded once per scan, so a small file with thousands would take minutes.
_MAX_SCANS = 100
# A block of 64 pixels takes at least one bit, so a byte holds at most 512 pixels. Twice that.
_JPEG_PIXELS_PER_BYTE = 1024
_HEAD_BYTES = 1 << 15
# Cameras append a few bytes after the end marker.
_TAIL_BYTES = 64 + 12
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_INTACT = "Replace it with an intact copy"


_Format = Literal["JPEG", "PNG", "BMP", "WebP", "TIFF"]


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an image file. The EXIF orientation is not applied.

    Raises:
        DataError: The file cannot be read, or `decode_image` cannot decode it.
    """
    return decode_image(read_bytes(path, limit=MAX_BYTES), file=path)


def decode_image(data: bytes, *, file: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an encoded image.

    Grey, CMYK and palette images are converted to RGB. Transparency is dropped, 16 bits are reduced
    to 8, and the first frame of an animation is used.

    Args:
        data: The bytes of a whole file.
        file: The name of the file, for the error message.

    Raises:
        DataError: The format is not one of the five, the header declares more than `max_pixels()`,
            or the data are damaged or cut short.
    """
    width, height = image_size(data, file=file)
    image = None
    if _format(data) == "TIFF":
        image = decode_tiff(data, (width, height), file)
    elif _format(data) != "JPEG":
        image = _decode_other(data)
    elif width * height <= _JPEG_PIXELS_PER_BYTE * len(data):
        image = _decode_jpeg(data, file)
    if image is None or image.shape != (height, width, 3):
        raise DataError(
            "its pixels are damaged or cut short", kind="image-damaged", file=file, remedy=_INTACT
        )
    return image


def max_pixels() -> int:
    """Returns the maximum number of pixels of an image: `MULTIBOX_MAX_PIXELS`, or `MAX_PIXELS`.

    Raises:
        ConfigError: The environment variable is not a whole number from 1 to 2^30, which is the
            limit of OpenCV.
    """
    text = os.environ.get("MULTIBOX_MAX_PIXELS", f"{MAX_PIXELS}")
    if not text.isdecimal() or not 1 <= int(text[:20]) <= 1 << 30:
        raise ConfigError(
            f"the environment variable MULTIBOX_MAX_PIXELS is {text[:80]!r}",
            remedy=f"Set it to a whole number from 1 to {1 << 30}",
        )
    return int(text)


def image_size(data: bytes, *, file: Path | str) -> tuple[int, int]:
    """Returns (width, height) in pixels, read from the header.

    Args:
        data: The file's first bytes. A JPEG's size comes after its EXIF data, if it has any.
        file: The name of the file, for the error message.

    Raises:
        DataError: The format is not one of the five, the header is damaged, or it declares no
            pixels or more than `max_pixels()`.
    """
    kind = _format(data)
    if kind is None:
        found = "is empty" if not data else "is neither JPEG, PNG, BMP, WebP nor TIFF"
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
    limit = max_pixels()
    if not 0 < width * height <= limit:
        raise DataError(
            f"its header declares {width} x {height} pixels, but the limit is {limit} in all",
            kind="image-too-large",
            file=file,
            remedy="Scale the image down, or set the environment variable MULTIBOX_MAX_PIXELS to a "
            "higher limit",
        )
    return width, height


def check_image(path: Path) -> tuple[int, int]:
    """Returns (width, height) of an image file after checking its beginning and its end.

    If the last bytes do not show that the file is complete, it is decoded. That concerns BMP, WebP,
    TIFF, and JPEGs with much appended data. Damage in the middle is not found here, but by
    `read_image`.

    Raises:
        DataError: The file cannot be read or is cut short, or `image_size` rejects its header.
    """
    head, tail = read_ends(path, head=_HEAD_BYTES, tail=_TAIL_BYTES, limit=MAX_BYTES)
    try:
        size = image_size(head, file=path)
    except DataError:
        size = image_size(read_bytes(path, limit=MAX_BYTES), file=path)
    marker = _END_MARKERS.get(_format(head) or "")
    if marker is None or marker not in tail:
        read_image(path)
    return size


def find_images(folder: Path) -> dict[str, Path]:
    """Returns the image files of a folder by stem. A JPEG is preferred (see `SUFFIXES`).

    Raises:
        DataError: The folder cannot be listed.
    """
    paths = reversed(list_folder(folder, missing_ok=False))
    ranked = sorted(paths, key=lambda path: SUFFIXES.get(path.suffix.lower(), 0))
    return {path.stem: path for path in ranked if path.suffix.lower() in SUFFIXES}


def _decode_jpeg(data: bytes, file: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    # Same as `data.count(b"\xff\xda")`, which takes six times as long: a tenth of decoding.
    codes = np.frombuffer(data, np.uint8)
    scans = np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == 0xDA))
    if scans > _MAX_SCANS:
        reason = f"has {scans} scans, but the limit is {_MAX_SCANS}"
        raise DataError(reason, kind="too-many-scans", file=file, remedy="Save the image again")
    try:
        # Without strict, libjpeg only warns of missing data and fills the gap with grey.
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
    if data.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
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
    """Returns a PNG up to its IEND chunk, or nothing if a chunk reaches beyond the file.

    OpenCV allocates as much memory as a chunk claims to need, and continues after an IEND chunk
    that is not empty.
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
    # A negative height means that the rows are stored from top to bottom.
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


_HEADERS = {"JPEG": _jpeg_header, "PNG": _png_header, "BMP": _bmp_header, "WebP": _webp_header} | {
    "TIFF": lambda data: (tiff_number(data, 256), tiff_number(data, 257))
}
