"""Reads an annotation in VOC's XML: the size of its image, and its objects.

From an object only the direct children name, difficult and the box are read, because the body parts
inside a VOC person have boxes, too. Objects of LabelMe's XML have an outline instead of a box, and
those of roLabelImg a rotated box; the upright box around it is used.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from multibox.data.dataset import Object
from multibox.data.formats.outlines import OUTLINED, ROTATED, Box, bounds, rotated_bounds
from multibox.data.formats.xml_files import number_in, parse_xml
from multibox.data.reading import Reading
from multibox.errors import DataError

ROOT = "annotation"
"""The tag of an annotation's root element."""
MAX_XML_BYTES = 1 << 20
"""The maximum size of an annotation file."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""The tags of a box."""

_X, _Y = re.compile(r"x[0-9]{0,6}"), re.compile(r"y[0-9]{0,6}")


def parse_annotation(file: Path) -> Element:
    """Returns the root element of an annotation file.

    Raises:
        DataError: It is not an annotation of VOC, or has a DTD.
    """
    return parse_xml(file, root=ROOT, limit=MAX_XML_BYTES)


def declared_size(tree: Element) -> tuple[int, int]:
    """Returns the (width, height) in an annotation, or zeros if it has no size.

    Raises:
        DataError: The size is malformed. The error names no file.
    """
    for element, width, height in (("size", "width", "height"), ("imagesize", "ncols", "nrows")):
        size = tree.find(element)
        if size is not None and (size.find(width) is not None or size.find(height) is not None):
            return _side(size, width), _side(size, height)
    return 0, 0


def _side(size: Element, tag: str) -> int:
    """Returns a width or height, or 0 if its element is empty."""
    return int(_number(size, tag)) if (_child(size, tag).text or "").strip() else 0


def read_objects(
    tree: Element, file: Path, frame_px: tuple[int, int], reading: Reading
) -> list[Object]:
    """Returns the objects of an annotation that can be used. The others become faults."""
    objects = []
    for number, element in enumerate(object_elements(tree), start=1):
        try:
            objects.append(reading.fitted(parse_object(element), frame_px))
        except DataError as error:
            reading.add_fault(error, file, object_position(number, element))
            continue
        if element.find("bndbox") is None:
            reading.notes[OUTLINED if element.find("robndbox") is None else ROTATED] += 1
    return objects


def object_elements(tree: Element) -> list[Element]:
    """Returns the elements of an annotation's objects, without those that LabelMe deleted."""
    deleted = (element.findtext("deleted") or "" for element in tree.findall("object"))
    return [
        element
        for element, flag in zip(tree.findall("object"), deleted, strict=True)
        if flag.strip() != "1"
    ]


def object_position(number: int, element: Element) -> str:
    """Returns an object's position as text: its number, counted from 1, and its class."""
    return f"object {number} ({element.findtext('name')!r})"


def parse_object(element: Element) -> Object:
    """Returns an object as it is written in the annotation.

    Raises:
        DataError: It has no valid name or box. The error names no file.
    """
    flag = (element.findtext("difficult") or "").strip()
    if flag not in ("", "0", "1"):
        raise DataError(f"its <difficult> is {flag[:40]!r}, not 0 or 1", kind="difficult-malformed")
    box_px = _box_px(element)
    name = (_child(element, "name").text or "").strip()
    if not name:
        raise DataError("its <name> is empty", kind="name-empty")
    return Object(name, box_px, flag == "1")


def _box_px(element: Element) -> Box:
    if element.find("bndbox") is None and element.find("robndbox") is not None:
        box = _child(element, "robndbox")
        x, y, width, height, angle = (_number(box, tag) for tag in ("cx", "cy", "w", "h", "angle"))
        return rotated_bounds((x, y), (width, height), angle)
    if element.find("bndbox") is None and element.find("polygon") is not None:
        points = list(_child(element, "polygon").iter())
        xs = [number_in(one.text or "", f"<{one.tag}>") for one in points if _X.fullmatch(one.tag)]
        ys = [number_in(one.text or "", f"<{one.tag}>") for one in points if _Y.fullmatch(one.tag)]
        return bounds(xs, ys)
    bndbox = _child(element, "bndbox")
    left, top, right, bottom = (_number(bndbox, tag) for tag in CORNERS)
    return left, top, right, bottom


def _number(parent: Element, tag: str) -> float:
    return number_in(_child(parent, tag).text or "", f"<{tag}>")


def _child(parent: Element, tag: str) -> Element:
    found = parent.findall(tag)
    if len(found) != 1:
        raise DataError(
            f"has {len(found) or 'no'} <{tag}> in its <{parent.tag}>",
            kind="field-repeated" if found else "field-missing",
        )
    return found[0]
