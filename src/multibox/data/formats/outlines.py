"""Boxes around outlines, masks, ellipses and rotated rectangles, and the notes that count them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from multibox.data.dataset import Note
from multibox.data.formats.json_files import are_plain
from multibox.data.reading import Reading
from multibox.errors import DataError

OUTLINED = Note("box-from-outline", "objects have an outline only: the box around it is used")
ROTATED = Note("box-rotated", "boxes are rotated: the upright box around each is used")
NO_BOX = Note("shape-without-box", "points, lines and other shapes without an area were left out")
_CUT = Note("box-clipped", "boxes around outlines that left their image were clipped")

Box = tuple[float, float, float, float]
"""The corners x0, y0, x1 and y1 of a box."""


def bounds(xs: Sequence[int | float], ys: Sequence[int | float]) -> Box:
    """Returns the smallest box around some points.

    Raises:
        DataError: There is no point. The error names no file.
    """
    if not xs or not ys:
        raise DataError("its outline has no points", kind="outline-malformed")
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))


def rotated_bounds(centre: tuple[float, float], sides: tuple[float, float], radians: float) -> Box:
    """Returns the smallest box around a rotated rectangle.

    Args:
        centre: Its centre (x, y).
        sides: Its width and height before the rotation.
        radians: The angle.
    """
    x, y = centre
    width, height = sides
    cos, sin = abs(math.cos(radians)), abs(math.sin(radians))
    half_x, half_y = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return x - half_x, y - half_y, x + half_x, y + half_y


def ellipse_bounds(centre: tuple[float, float], radii: tuple[float, float], radians: float) -> Box:
    """Returns the smallest box around a rotated ellipse.

    Args:
        centre: Its centre (x, y).
        radii: Its horizontal and vertical radius before the rotation.
        radians: The angle.
    """
    x, y = centre
    rx, ry = radii
    cos, sin = math.cos(radians), math.sin(radians)
    half_x, half_y = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return x - half_x, y - half_y, x + half_x, y + half_y


def mask_bounds(counts: Any, size: Any) -> Box | None:
    """Returns the smallest box around a mask, or None if its run lengths are malformed.

    The runs alternate between background and mask, from the top of the first column down to the
    bottom of the last one (`maskApi.c`).

    Args:
        counts: The run lengths, as a list or as COCO's compressed text.
        size: Height and width of the mask.
    """
    if not are_plain(size, 2) or not all(type(side) is int and side > 0 for side in size):
        return None
    height, width = size
    runs = _decompressed(counts) if type(counts) is str else counts
    if type(runs) is not list or not all(type(run) is int and 0 <= run <= 1 << 40 for run in runs):
        return None
    ends = np.cumsum(np.array(runs, np.int64))
    last = ends[1::2]
    first = ends[::2][: len(last)]
    first, last = first[last > first], last[last > first] - 1
    if not len(ends) or ends[-1] > height * width:
        return None
    if not len(first):
        return 0.0, 0.0, 0.0, 0.0
    top, bottom = (first % height).min(), (last % height).max() + 1
    if (first // height != last // height).any():
        # A run that reaches into the next column contains the bottom of one and the top of another.
        top, bottom = 0, height
    return float(first.min() // height), float(top), float(last.max() // height + 1), float(bottom)


def _decompressed(counts: str) -> list[int] | None:
    """Returns the run lengths in COCO's compressed text (`rleFrString` in `maskApi.c`).

    Six bits in each character: five of a number, the lowest first, and one that says if there are
    more. From the fourth number on, differences from the number before the previous one are stored.
    """
    runs: list[int] = []
    number = shift = 0
    for char in counts:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return runs if not shift else None


def inside(box_px: Box, size_px: tuple[int, int], reading: Reading) -> Box:
    """Returns the part of a box that is in the image.

    A circle or a rotated rectangle may leave the image although its object does not.
    """
    x0, y0, x1, y1 = box_px
    width, height = map(float, size_px)
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
    if clipped != box_px:
        reading.notes[_CUT] += 1
    return clipped
