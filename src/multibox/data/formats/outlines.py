"""Boxes around outlines, ellipses and rotated rectangles, and the notes that count them."""

import math
from collections.abc import Sequence

from multibox.data.dataset import Note
from multibox.data.reading import Reading
from multibox.errors import DataError

OUTLINED = Note("box-from-outline", "objects have an outline only: the box around it is used")
ROTATED = Note("box-rotated", "boxes are rotated: the upright box around each is used")
NO_BOX = Note("shape-without-box", "points, lines and other shapes without an area were left out")
_CUT = Note("box-clipped", "boxes around outlines that left their image were clipped")

Box = tuple[float, float, float, float]
"""The corners x0, y0, x1 and y1 of a box."""


def bounds(xs: Sequence[float], ys: Sequence[float]) -> Box:
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
