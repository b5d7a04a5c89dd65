"""Fuzz targets: images, part by part, with lengths and checksums put right or not."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from fuzz.choices import Choices, damaged
from PIL import Image

from multibox.data import image_metadata
from multibox.data.images import MAX_PIXELS, check_image, decode_image, image_size
from multibox.errors import DataError

_NAME = Path("photo.jpg")
_HEIGHT, _WIDTH = 18, 24
# Decoding a picture of this many pixels takes more than a case may; they are held to 50 Mpx.
_SIDES = (0, 1, 2, 7, 24, 25, 400, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _pixels(channels: int, kind: type = np.uint8) -> np.ndarray:
    count = _HEIGHT * _WIDTH * channels
    return (np.arange(count) * 7 % 251).astype(kind).reshape(_HEIGHT, _WIDTH, channels)


def _encoded(suffix: str, channels: int, *options: int, kind: type = np.uint8) -> bytes:
    return bytes(cv2.imencode(suffix, _pixels(channels, kind), options)[1])


def _tiff(channels: int, compression: str | None = None, kind: type = np.uint8) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(_pixels(channels, kind).squeeze())
    image.save(buffer, "TIFF", compression=compression, tiffinfo={274: 6})
    return buffer.getvalue()


@cache
def seeds() -> tuple[bytes, ...]:
    """Returns one small image of each kind that is read."""
    return (
        simplejpeg.encode_jpeg(_pixels(3)),
        _encoded(".png", 3),
        _encoded(".bmp", 3),
        _encoded(".webp", 3, cv2.IMWRITE_WEBP_QUALITY, 101),
        _encoded(".webp", 3, cv2.IMWRITE_WEBP_QUALITY, 80),
        _encoded(".jpg", 3, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        _encoded(".jpg", 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        _encoded(".png", 4),
        _encoded(".png", 1, kind=np.uint16),
        _encoded(".webp", 4, cv2.IMWRITE_WEBP_QUALITY, 101),
        simplejpeg.encode_jpeg(_pixels(4), 90, "CMYK", "444"),
        _tiff(3),
        _tiff(3, "tiff_lzw"),
        _tiff(4, "tiff_adobe_deflate"),
        _tiff(1, "packbits"),
        _tiff(1, kind=np.uint16),
    )


def _exif(choices: Choices) -> bytes:
    order = choices.pick((b"II*\0", b"MM\0*", b"XX"))
    form = ">" if order.startswith(b"MM") else "<"
    tag, kind = choices.pick((0x0112, 0x0111, 0x8769)), choices.pick((3, 4, 2, 0))
    value = choices.pick((1, 6, 8, 9, 0, 65_535))
    count = choices.pick((1, 0, 2, 65_535))
    start = choices.pick((8, 0, 4, 0xFFFFFFFF, 60_000))
    entry = struct.pack(f"{form}HHIHH", tag, kind, 1, value, 0)
    return order + struct.pack(f"{form}IH", start, count) + entry + bytes(4)


def _changed_jpeg(data: bytes, choices: Choices) -> bytes:
    segments = [(part.name, data[part.start : part.end]) for part in image_metadata._parts(data)]
    scan = data[2 + sum(4 + len(body) for _, body in segments) :]
    for _ in range(1 + choices.below(3)):
        place = choices.below(len(segments))
        name, body = segments[place]
        match choices.below(7):
            case 0:
                segments[place] = name, damaged(body, choices)
            case 1:
                segments.insert(choices.below(len(segments) + 1), (name, body))
            case 2 if len(segments) > 1:
                del segments[place]
            case 3:
                segments[place] = choices.pick(("C0", "C1", "C2", "C9", "DB", "FE")), body
            case 4:
                segments.insert(place, ("E1", b"Exif\0\0" + _exif(choices)))
            case 5:
                sides = struct.pack(">HH", *(choices.pick(_SIDES) & 0xFFFF for _ in "xy"))
                if name.startswith("C") and name != "C4":
                    segments[place] = name, body[:1] + sides + body[5:]
            case _:
                extra = choices.pick((b"\xff\xda", b"\xff\xd9", b"\xff\xd0", b"\xff\xda\0\x08"))
                scan = scan[: choices.below(len(scan))] + extra * choices.pick((1, 99, 3000)) + scan
    head = b"".join(
        bytes.fromhex(f"FF{name}") + struct.pack(">H", len(body) + 2) + body
        for name, body in segments
        if len(body) < 65_000
    )
    return b"\xff\xd8" + head + scan


def _changed_png(data: bytes, choices: Choices) -> bytes:
    chunks = [
        (part.name.encode(), data[part.start : part.end]) for part in image_metadata._parts(data)
    ]
    for _ in range(1 + choices.below(3)):
        place = choices.below(len(chunks))
        name, body = chunks[place]
        match choices.below(8):
            case 0:
                chunks[place] = name, damaged(body, choices)
            case 1:
                chunks.insert(choices.below(len(chunks) + 1), (name, body))
            case 2 if len(chunks) > 1:
                del chunks[place]
            case 3 if name == b"IHDR":
                sides = struct.pack(">II", choices.pick(_SIDES), choices.pick(_SIDES))
                chunks[place] = name, sides + body[8:]
            case 4 if name == b"IHDR" and len(body) == 13:
                fields = (choices.pick((1, 2, 8, 16, 3)), choices.pick((0, 2, 3, 4, 6, 5)))
                chunks[place] = name, body[:8] + bytes((*fields, 0, 0, choices.below(3)))
            case 5:
                bomb = zlib.compress(bytes(choices.pick((100, 30_000, 3_000_000))))
                kinds = (b"iCCP", b"zTXt", b"iTXt", b"IDAT", b"fdAT")
                chunks.insert(place, (choices.pick(kinds), b"a\0\0" + bomb))
            case 6:
                chunks.insert(place, (b"eXIf", _exif(choices)))
            case _:
                kinds = (b"acTL", b"tRNS", b"PLTE", b"gAMA", b"fcTL", b"IEND", b"JUNK")
                chunks.insert(place, (choices.pick(kinds), choices.bytes(choices.below(30))))
    wrong = choices.one_in(8)
    return data[:8] + b"".join(
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body) ^ wrong)
        for name, body in chunks
    )


def _changed_fields(data: bytes, choices: Choices) -> bytes:
    """Changes whole numbers in the first bytes of a BMP or WebP."""
    out = bytearray(data)
    for _ in range(1 + choices.below(4)):
        place = 2 * choices.below(32)
        number = choices.pick((*_SIDES, 8, 16, 32, 40, 124, 0xFFFFFFE8))
        form = choices.pick(("<I", "<H"))
        struct.pack_into(form, out, place, number & (0xFFFF if form == "<H" else 0xFFFFFFFF))
    if data.startswith(b"RIFF") and choices.one_in(2):
        out[12:12] = b"VP8X\x0a\0\0\0" + choices.bytes(1).ljust(1, b"\0") + bytes(9)
    if data.startswith(b"RIFF") and choices.one_in(4):
        body = _exif(choices)
        out += b"EXIF" + struct.pack("<I", len(body)) + body
    return bytes(out)


def _changed_tiff(data: bytes, choices: Choices) -> bytes:
    """Changes entries of the first directory."""
    out = bytearray(data)
    (directory,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, directory)
    for _ in range(1 + choices.below(3)):
        entry = directory + 2 + 12 * choices.below(count)
        match choices.below(5):
            case 0:
                tags = (256, 258, 259, 262, 274, 277, 278, 279, 317, 320, 322, 324, 330, 338, 339)
                struct.pack_into("<H", out, entry, choices.pick(tags))
            case 1:
                struct.pack_into("<H", out, entry + 2, choices.pick((1, 2, 3, 4, 5, 12, 16, 0)))
            case 2:
                struct.pack_into("<I", out, entry + 4, choices.pick((0, 1, 2, 3, 70_000, 1 << 31)))
            case 3:
                numbers = (*_SIDES, 3, 5, 6, 8, 16, 32, 32_773, 32_946, directory)
                struct.pack_into("<I", out, entry + 8, choices.pick(numbers))
            case _:
                struct.pack_into("<I", out, 4, choices.pick((0, 4, 8, len(out) - 2, 1 << 31)))
    return bytes(out)


def picture(choices: Choices) -> bytes:
    """Returns an image, or what was one."""
    data = choices.pick(seeds())
    if not choices.below(16):
        return data
    changes: dict[bytes, Callable[[bytes, Choices], bytes]] = {
        b"\xff\xd8": _changed_jpeg,
        b"\x89P": _changed_png,
        b"II": _changed_tiff,
    }
    changed = changes.get(data[:2], _changed_fields)(data, choices)
    return damaged(changed, choices) if choices.one_in(6) else changed


def header(choices: Choices, folder: Path) -> None:
    """The beginning of an image."""
    data = picture(choices)
    width, height = image_size(data[: choices.pick((1 << 15, 24, 30, 64))], file=_NAME)
    assert 0 < width * height <= MAX_PIXELS
    path = folder / "image"
    path.write_bytes(data)
    image_metadata.has_sixteen_bits(path)
    image_metadata.has_rotated_orientation(path)


def image(choices: Choices, folder: Path) -> None:
    """A whole image: what is looked at before, the pixels, and what is peculiar of it."""
    data = picture(choices)
    path = folder / "image"
    path.write_bytes(data)
    image_metadata.find_orientation(data)
    upright = image_metadata.without_orientation(data)
    assert len(upright) == len(data)
    orientation = image_metadata.find_orientation(upright)
    assert orientation is None or orientation.value == 1
    size = image_size(data, file=_NAME)
    pixels = decode_image(data, file=_NAME)
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8
    assert check_image(path) == size
    assert np.array_equal(decode_image(data, file=_NAME), pixels)
    for reason in image_metadata.unusual_properties(data, ".jpg").values():
        assert reason.isprintable()
    try:
        turned = decode_image(upright, file=_NAME)
    except DataError:
        raise AssertionError("cannot be decoded any more") from None
    assert np.array_equal(turned, pixels)
