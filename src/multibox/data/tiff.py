"""Decodes TIFF files: their directory, which EXIF data have as well, and their first page."""

import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL.TiffImagePlugin import TiffImageFile

from multibox.errors import DataError

_ORIENTATION = 274
# Uncompressed, LZW, Deflate (two numbers) and PackBits.
_TIFF_COMPRESSIONS = (1, 5, 8, 32_773, 32_946)
_TIFF_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I;16B")


def decode_tiff(
    data: bytes, size: tuple[int, int], file: Path | str
) -> UInt8[np.ndarray, "H W 3"] | None:
    """Returns the RGB pixels of the first page, or None if they are damaged.

    OpenCV is not used, because it fills damaged strips with black and does not report them.

    Args:
        data: The bytes of a whole file.
        size: (width, height) from the header.
        file: The name of the file, for the error message.

    Raises:
        DataError: The kind of compression or pixels is not supported.
    """
    upright = bytearray(data)
    try:
        for order, tag, _, place in tiff_entries(data):
            if tag == _ORIENTATION:  # Pillow would apply it.
                struct.pack_into(f"{order}H", upright, place, 1)
        with warnings.catch_warnings(action="ignore"), TiffImageFile(io.BytesIO(upright)) as image:
            compression, photometric = image.tag_v2.get(259, 1), image.tag_v2.get(262)
            if compression not in _TIFF_COMPRESSIONS or image.mode not in _TIFF_MODES:
                raise SyntaxError(f"compression {compression}, mode {image.mode}")
            if image.size != size:
                return None
            image.load()
            if not image.mode.startswith("I;16"):
                return np.array(image.convert("RGB"))
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            # Pillow does not invert 16 bits if 0 means white.
            return np.repeat((~grey if photometric == 0 else grey)[..., None], 3, axis=2)
    except SyntaxError as error:
        raise DataError(
            f"this kind of TIFF is not supported ({error})",
            kind="image-format",
            file=file,
            remedy="Save it with 8 or 16 bits per channel, uncompressed or with LZW or Deflate",
        ) from None
    except Exception:
        # Pillow raises errors of many kinds for damaged files.
        return None


def tiff_entries(data: bytes, start: int = 0) -> Iterator[tuple[str, int, int, int]]:
    """Yields the entries of the first directory of a TIFF file, or of EXIF data.

    Args:
        data: The first bytes of a file.
        start: Offset at which the TIFF file or the EXIF data begin.

    Yields:
        Byte order (`<` or `>`), tag, type of the values, and offset of the first value.

    Raises:
        struct.error: The directory is cut short.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    if order is None:
        return
    (directory,) = struct.unpack_from(f"{order}I", data, start + 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start + directory)
    for entry in range(start + directory + 2, start + directory + 2 + 12 * entries, 12):
        tag, form, count, place = struct.unpack_from(f"{order}HHII", data, entry)
        inside = count * {3: 2, 4: 4}.get(form, 1) <= 4
        yield order, tag, form, entry + 8 if inside else start + place


def tiff_number(data: bytes, wanted: int) -> int:
    """Returns the first value of a tag of a TIFF file. Raises ValueError if the tag is missing."""
    for order, tag, form, place in tiff_entries(data):
        if tag == wanted and form in (3, 4):
            value: int = struct.unpack_from(f"{order}{'H' if form == 3 else 'I'}", data, place)[0]
            return value
    raise ValueError(f"no tag {wanted}")
