"""Finds information in image files that decoding to 8-bit RGB drops: EXIF orientation, alpha, etc.

The files were decoded before, so damaged parts are ignored here and not reported. The EXIF
orientation is found by its position in the file, so that it can be changed without any other byte.
Pillow gives neither that position nor the 16 bits of an RGB PNG, and it rejects damaged files that
are decoded for training.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import simplejpeg

from multibox.data.files import read_bytes, read_ends
from multibox.data.images import MAX_BYTES
from multibox.data.tiff import tiff_entries, tiff_number

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _EXTRA_SAMPLES = 258, 262, 338
_HEAD_BYTES = 1 << 15
_TIFF = (b"II*\0", b"MM\0*")
_SIXTEEN = "it has 16 bits per channel; the upper 8 are used"
_ALPHA = "its transparency is dropped, so hidden pixels become visible"
_GREY = "it is grey and is converted to RGB"
_JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN = 0xDA
_BEGINNINGS: dict[str, bytes | tuple[bytes, ...]] = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), b"\xff\xd8"),
    **dict.fromkeys((".tif", ".tiff"), _TIFF),
    **{".png": b"\x89PNG", ".bmp": b"BM", ".webp": b"RIFF"},
}


class Part(NamedTuple):
    """A segment of a JPEG, a chunk of a PNG or WebP, or a whole TIFF.

    Attributes:
        name: The marker in hexadecimal, the name of the chunk, or `TIFF`.
        start: Offset of its content in the file.
        end: Offset of the end of its content.
    """

    name: str
    start: int
    end: int


class Orientation(NamedTuple):
    """An EXIF orientation.

    Attributes:
        value: 1..8. 1 means that the image is stored upright.
        place: Offset of its two bytes in the file.
        order: Their byte order, `<` or `>`.
        part: The segment or chunk that they are in.
    """

    value: int
    place: int
    order: str
    part: Part


def unusual_properties(data: bytes, suffix: str) -> dict[str, str]:
    """Returns unusual properties of an image file: reasons by kind (see `findings.KINDS`).

    Args:
        data: The content of an image file that can be decoded.
        suffix: The suffix of the file's name.
    """
    found = {}
    orientation = find_orientation(data)
    if orientation is not None and orientation.value != 1:
        reason = f"its EXIF orientation is {orientation.value}, which is not applied"
        found["exif-rotation"] = reason
    if data.startswith(b"\xff\xd8"):
        found |= _jpeg_properties(data)
    elif data.startswith(b"\x89PNG"):
        found |= _png_properties(data)
    elif data.startswith(b"RIFF"):
        found |= _webp_properties(data)
    elif data.startswith(_TIFF):
        found |= _tiff_properties(data)
    if not data.startswith(_BEGINNINGS.get(suffix.lower(), b"")):
        found["suffix-differs"] = f"its format does not match its suffix {suffix}"
    return found


def without_orientation(data: bytes) -> bytes:
    """Returns the file with its EXIF orientation set to 1. No other byte of the image changes.

    In a PNG, the checksum of the EXIF chunk changes, too.
    """
    orientation = find_orientation(data)
    if orientation is None:
        return data
    place, part = orientation.place, orientation.part
    changed = bytearray(data)
    changed[place : place + 2] = struct.pack(f"{orientation.order}H", 1)
    if part.name == "eXIf":
        checksum = zlib.crc32(changed[part.start - 4 : part.end])
        changed[part.end : part.end + 4] = struct.pack(">I", checksum)
    return bytes(changed)


def find_orientation(data: bytes) -> Orientation | None:
    """Returns the EXIF orientation of a file, or None if it has no valid one."""
    for part in _parts(data):
        if part.name not in ("E1", "eXIf", "EXIF", "TIFF"):
            continue
        # EXIF segments of JPEGs begin with this. Some programs also write it into a WebP.
        prefixed = data.startswith(b"Exif\0\0", part.start)
        if part.name == "E1" and not prefixed:
            continue
        try:
            return _orientation(data, part.start + 6 * prefixed, part)
        except struct.error:
            return None
    return None


def has_rotated_orientation(path: Path) -> bool:
    """Returns whether an image's EXIF orientation (5..8) swaps its width and height.

    Raises:
        DataError: The file cannot be read.
    """
    orientation = find_orientation(read_bytes(path, limit=MAX_BYTES))
    return orientation is not None and orientation.value >= 5


def has_sixteen_bits(path: Path) -> bool:
    """Returns whether an image is a PNG or TIFF with 16 bits per channel, by its header.

    Raises:
        DataError: The file cannot be read.
    """
    head, _ = read_ends(path, head=_HEAD_BYTES, tail=1, limit=MAX_BYTES)
    if head.startswith(_TIFF) and not _bits(head):
        head = read_bytes(path, limit=MAX_BYTES)  # The directory may follow the pixels.
    return _bits(head) == 16


def _bits(data: bytes) -> int:
    """Returns the bits per channel of a PNG or TIFF. 0: another format, or not in these bytes."""
    if data.startswith(b"\x89PNG"):
        return data[24] if len(data) > 24 else 0
    return _tiff_tag(data, _BITS) or 0 if data.startswith(_TIFF) else 0


def _tiff_tag(data: bytes, tag: int) -> int | None:
    try:
        return tiff_number(data, tag)
    except (struct.error, ValueError):
        return None


def _orientation(data: bytes, start: int, part: Part) -> Orientation | None:
    """Finds the tag in the first directory of the TIFF data that begin at `start`."""
    for order, tag, form, place in tiff_entries(data, start):
        if (tag, form) == (_ORIENTATION, 3) and place + 2 <= part.end:
            (value,) = struct.unpack_from(f"{order}H", data, place)
            if 1 <= value <= 8:
                return Orientation(value, place, order, part)
    return None


def _parts(data: bytes) -> Iterator[Part]:
    try:
        if data.startswith(b"\xff\xd8"):
            yield from _segments(data)
        elif data.startswith(b"\x89PNG"):
            yield from _chunks(data, ">I4s", 8)
        elif data.startswith(b"RIFF"):
            yield from _chunks(data, "<4sI", 12)
        elif data.startswith(_TIFF):
            yield Part("TIFF", 0, len(data))
    except struct.error:
        return


def _segments(data: bytes) -> Iterator[Part]:
    """Yields a JPEG's segments before its first scan."""
    place = 2
    while True:
        lead, marker = struct.unpack_from("BB", data, place)
        if lead != 0xFF or marker == _SCAN:
            return
        if marker == 0xFF or marker in _JPEG_WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        yield Part(f"{marker:02X}", place + 4, place + 2 + length)
        place += 2 + length


def _chunks(data: bytes, head: str, place: int) -> Iterator[Part]:
    """Yields the chunks of a PNG or WebP.

    A checksum follows each chunk of a PNG, and a chunk of a WebP is padded to even length.
    """
    png = head.startswith(">")
    while place < len(data):
        first, second = struct.unpack_from(head, data, place)
        length, name = (first, second) if png else (second, first)
        start = place + 8
        yield Part(name.decode("latin-1"), start, start + length)
        place = start + length + (4 if png else length % 2)


def _jpeg_properties(data: bytes) -> dict[str, str]:
    _, _, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours in ("CMYK", "YCCK"):
        return {"cmyk": f"its colours are {colours}, converted to RGB without a colour profile"}
    return {"grey": _GREY} if colours == "Gray" else {}


def _tiff_properties(data: bytes) -> dict[str, str]:
    found = {}
    if _tiff_tag(data, _BITS) == 16:
        found["sixteen-bit"] = _SIXTEEN
    if _tiff_tag(data, _EXTRA_SAMPLES) is not None:
        found["alpha"] = _ALPHA
    if _tiff_tag(data, _PHOTOMETRIC) in (0, 1):
        found["grey"] = _GREY
    return found


def _png_properties(data: bytes) -> dict[str, str]:
    depth, colours = data[24], data[25]
    names = {part.name for part in _parts(data)}
    found = {}
    if depth == 16:
        found["sixteen-bit"] = _SIXTEEN
    if colours in (4, 6) or "tRNS" in names:
        found["alpha"] = _ALPHA
    if colours in (0, 4):
        found["grey"] = _GREY
    if "acTL" in names:
        found["animated"] = "it is animated; the first frame is used"
    return found


def _webp_properties(data: bytes) -> dict[str, str]:
    found, flags = {}, data[20] if data[12:16] == b"VP8X" else 0
    lossless = data[12:16] == b"VP8L" and data[24] & 0x10
    if flags & 0x10 or lossless:
        found["alpha"] = _ALPHA
    if flags & 0x02:
        found["animated"] = "it is animated; the first frame is used"
    return found
