"""Boxes around outlines and rotated rectangles, and the notes that count them."""

from collections.abc import Sequence
from typing import Any

from multibox.data.dataset import Note
from multibox.data.reading import Reading

OUTLINED = Note("box-from-outline", "objects have an outline only: the box around it is used")
ROTATED = Note("box-rotated", "boxes are rotated: the upright box around each is used")
NO_BOX = Note("shape-without-box", "points, lines and other shapes without an area were left out")
_CUT = Note("box-clipped", "boxes around outlines that left their image were clipped")

Box = tuple[float, float, float, float]


def bounds(points: Sequence[Sequence[Any]]) -> Box:
    """Returns the smallest box around at least one point."""
    xs, ys = [float(point[0]) for point in points], [float(point[1]) for point in points]
    return min(xs), min(ys), max(xs), max(ys)


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
