"""What an image file holds beside eight bits of red, green and blue, which decoding drops.

Only what a decoder has accepted is looked at here, so that a part that is damaged says nothing.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg

_ORIENTATION = 0x0112
_JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN = 0xDA
_BEGINNINGS = {
    **dict.fromkeys((".jpg", ".jpeg"), b"\xff\xd8"),
    **{".png": b"\x89PNG", ".bmp": b"BM", ".webp": b"RIFF"},
}


class Part(NamedTuple):
    """A JPEG's segment, or a chunk of a PNG or WebP.

    Attributes:
        name: The marker's two digits, or the chunk's name.
        start: Where its body begins in the file.
        end: Where it ends.
    """

    name: str
    start: int
    end: int


class Orientation(NamedTuple):
    """An EXIF orientation.

    Attributes:
        value: 1..8; 1 leaves the image as it is.
        place: Where its two bytes are in the file.
        order: Their order, `<` or `>`.
        part: What they are part of.
    """

    value: int
    place: int
    order: str
    part: Part


def peculiarities(data: bytes, suffix: str) -> dict[str, str]:
    """Returns what is peculiar of an image: reasons by the kinds of `findings.KINDS`.

    Args:
        data: The file, which can be decoded.
        suffix: Of its name.
    """
    found = {}
    orientation = find_orientation(data)
    if orientation is not None and orientation.value != 1:
        reason = f"its EXIF orientation is {orientation.value}; its pixels are used as stored"
        found["exif-rotation"] = reason
    if data.startswith(b"\xff\xd8"):
        found |= _of_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        found |= _of_png(data)
    elif data.startswith(b"RIFF"):
        found |= _of_webp(data)
    if not data.startswith(_BEGINNINGS.get(suffix.lower(), b"")):
        found["suffix-differs"] = f"its content is not what {suffix} says"
    return found


def without_orientation(data: bytes) -> bytes:
    """Returns a file whose EXIF orientation is 1; nothing else in it is altered."""
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
    """Returns the EXIF orientation of a file, or None where it has none from 1 to 8."""
    for part in _parts(data):
        if part.name not in ("E1", "eXIf", "EXIF"):
            continue
        # A JPEG's segment begins with this, and some programs write it into a WebP as well.
        prefixed = data.startswith(b"Exif\0\0", part.start)
        if part.name == "E1" and not prefixed:
            continue
        try:
            return _orientation(data, part.start + 6 * prefixed, part)
        except struct.error:
            return None
    return None


def _orientation(data: bytes, start: int, part: Part) -> Orientation | None:
    """Looks for the tag in the first directory of the TIFF that begins at `start`."""
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    if order is None:
        return None
    (directory,) = struct.unpack_from(f"{order}I", data, start + 4)
    (count,) = struct.unpack_from(f"{order}H", data, start + directory)
    for entry in range(start + directory + 2, start + directory + 2 + 12 * count, 12):
        tag, form, _, value = struct.unpack_from(f"{order}HHIH", data, entry)
        if (tag, form) == (_ORIENTATION, 3) and entry + 10 <= part.end and 1 <= value <= 8:
            return Orientation(value, entry + 8, order, part)
    return None


def _parts(data: bytes) -> Iterator[Part]:
    try:
        if data.startswith(b"\xff\xd8"):
            yield from _segments(data)
        elif data.startswith(b"\x89PNG"):
            yield from _chunks(data, ">I4s", 8)
        elif data.startswith(b"RIFF"):
            yield from _chunks(data, "<4sI", 12)
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
    """Yields the chunks of a PNG, which a checksum follows, or of a WebP, padded to even length."""
    png = head.startswith(">")
    while place < len(data):
        first, second = struct.unpack_from(head, data, place)
        length, name = (first, second) if png else (second, first)
        start = place + 8
        yield Part(name.decode("latin-1"), start, start + length)
        place = start + length + (4 if png else length % 2)


def _of_jpeg(data: bytes) -> dict[str, str]:
    _, _, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours in ("CMYK", "YCCK"):
        return {"cmyk": f"its colours are {colours}, which become RGB without a colour profile"}
    return {"grey": "it is grey, and becomes RGB"} if colours == "Gray" else {}


def _of_png(data: bytes) -> dict[str, str]:
    depth, colours = data[24], data[25]
    names = {part.name for part in _parts(data)}
    found = {}
    if depth == 16:
        found["sixteen-bit"] = "it has 16 bits per channel, of which the upper 8 are used"
    if colours in (4, 6) or "tRNS" in names:
        found["alpha"] = "its transparency is dropped, which shows what lay beneath"
    if colours in (0, 4):
        found["grey"] = "it is grey, and becomes RGB"
    if "acTL" in names:
        found["animated"] = "it is animated; the first picture is used"
    return found


def _of_webp(data: bytes) -> dict[str, str]:
    found, flags = {}, data[20] if data[12:16] == b"VP8X" else 0
    lossless = data[12:16] == b"VP8L" and data[24] & 0x10
    if flags & 0x10 or lossless:
        found["alpha"] = "its transparency is dropped, which shows what lay beneath"
    if flags & 0x02:
        found["animated"] = "it is animated; the first picture is used"
    return found
