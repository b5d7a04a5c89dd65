"""Corrections of one image and its annotation, and a note of each."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.data.check.image_metadata import find_orientation, peculiarities, without_orientation
from multibox.data.dataset import Annotation, Object, fit_box
from multibox.data.formats.voc import declared_size, object_position, parse_object
from multibox.data.images import MAX_BYTES, decode_image, read_bytes
from multibox.errors import DataError

_ENCODED_ANEW = ("cmyk", "sixteen-bit", "alpha", "animated")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KEPT_SHARE = 0.5
"""Of a box's area, which clipping must leave: otherwise the box is not where its object is."""

_Box = tuple[float, float, float, float]
_Place = tuple[str, _Box]


class Change(NamedTuple):
    """What was altered or left out.

    Attributes:
        file: The file of the dataset.
        position: The place inside it, or None for all of it.
        change: What was done, and why.
    """

    file: Path
    position: str | None
    change: str

    def as_json(self) -> dict[str, str | None]:
        """Returns it as an object of JSON."""
        return {"file": str(self.file), "position": self.position, "change": self.change}


class CorrectedImage(NamedTuple):
    """An image's file as it should be.

    Attributes:
        source: The dataset's file.
        data: The bytes of the new one.
        suffix: Of its name.
        size_px: (width, height).
        changes: What was altered.
    """

    source: Path
    data: bytes
    suffix: str
    size_px: tuple[int, int]
    changes: tuple[Change, ...]


def correct_image(path: Path) -> CorrectedImage:
    """Returns an image's own bytes where nothing is wrong with them.

    Raises:
        DataError: It cannot be decoded.
    """
    data = read_bytes(path, limit=MAX_BYTES)
    image = decode_image(data, file=path)
    size_px = image.shape[1], image.shape[0]
    found = peculiarities(data, path.suffix)
    for kind in _ENCODED_ANEW:
        if kind in found:
            change = Change(path, None, f"saved as PNG with eight bits of RGB: {found[kind]}")
            return CorrectedImage(path, _png(image), ".png", size_px, (change,))
    if "exif-rotation" in found:
        change = Change(path, None, f"orientation set to 1: {found['exif-rotation']}")
        return CorrectedImage(path, without_orientation(data), path.suffix, size_px, (change,))
    return CorrectedImage(path, data, path.suffix, size_px, ())


def _png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    return bytes(encoded)


def correct_tree(
    tree: Element, file: Path, image: CorrectedImage, classes: tuple[str, ...]
) -> tuple[CorrectedImage, list[Change]]:
    """Corrects an annotation in place; returns its image, which may have to be turned.

    Args:
        tree: An annotation of VOC's.
        file: Its file.
        image: Its image.
        classes: The only names that objects may have; empty: any.

    Raises:
        DataError: Its boxes are those of an image of another size, or none of them is left.
    """
    changes = []
    try:
        declared = declared_size(tree)
    except DataError:
        declared = 0, 0
    if declared != image.size_px:
        image = _turned(image, declared)
    if declared != image.size_px:
        if min(declared) > 0 and not _all_fit(tree, image.size_px):
            raise DataError("its boxes were drawn on an image of another size", kind="size-differs")
        _set_size(tree, image.size_px)
        written, found = (f"{width} x {height}" for width, height in (declared, image.size_px))
        changes.append(Change(file, None, f"size {written} became {found}"))
    elements = tree.findall("object")
    seen = set[_Place]()
    for number, element in enumerate(elements, start=1):
        position = object_position(number, element)
        try:
            kept, clipped = _corrected(element, image.size_px, classes, seen)
        except DataError as error:
            tree.remove(element)
            changes.append(Change(file, position, f"removed: {error.reason}"))
            continue
        seen.add((kept.name, kept.box_px))
        if clipped:
            _set_box(element, kept)
            changes.append(Change(file, position, "its box was clipped"))
    if elements and not seen:
        raise DataError("none of its objects can be used", kind="nothing-to-learn")
    return image, changes


def _turned(image: CorrectedImage, declared: tuple[int, int]) -> CorrectedImage:
    """Returns an image turned as its EXIF part says, if the annotation was made on that."""
    data = image.source.read_bytes()
    orientation = find_orientation(data)
    if orientation is None or orientation.value < 5 or image.size_px[::-1] != declared:
        return image
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None or pixels.shape != (declared[1], declared[0], 3):
        return image
    reason = "turned as its EXIF orientation says, because its annotation was made on that"
    change = Change(image.source, None, f"{reason}; saved as PNG")
    return CorrectedImage(image.source, _png(pixels), ".png", declared, (change,))


def _all_fit(tree: Element, size_px: tuple[int, int]) -> bool:
    for element in tree.findall("object"):
        try:
            box_px = parse_object(element).box_px
        except DataError:
            continue
        try:
            fit_box(box_px, size_px)
        except DataError:
            return False
    return True


def _set_size(tree: Element, size_px: tuple[int, int]) -> None:
    for old in tree.findall("size"):
        tree.remove(old)
    size = Element("size")
    for name, side in zip(("width", "height", "depth"), (*size_px, 3), strict=True):
        ET.SubElement(size, name).text = str(side)
    tree.insert(0, size)


def _corrected(
    element: Element, size_px: tuple[int, int], classes: tuple[str, ...], seen: set[_Place]
) -> tuple[Object, bool]:
    """Returns an object with its box clipped, and whether that altered it.

    Raises:
        DataError: It is to be removed; the reason alone is given.
    """
    written = parse_object(element)
    if classes and written.name not in classes:
        raise DataError(f"its class is none of {', '.join(classes)}", kind="class-unknown")
    try:
        kept = written._replace(box_px=fit_box(written.box_px, size_px))
    except DataError:
        kept = written._replace(box_px=_clipped(written.box_px, size_px))
    if (kept.name, kept.box_px) in seen:
        raise DataError("is the same as another object", kind="duplicate-object")
    return kept, kept != written


def _clipped(box_px: _Box, size_px: tuple[int, int]) -> _Box:
    """Returns the part of a box in its image.

    Raises:
        DataError: Less than half of it is there; the reason alone is given.
    """
    left, top, right, bottom = box_px
    width, height = map(float, size_px)
    inside = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    area = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1])
    if left >= right or top >= bottom or area < _KEPT_SHARE * (right - left) * (bottom - top):
        raise DataError(
            "its box is empty, or for the most part outside of the image", kind="box-outside"
        )
    return inside


def _set_box(element: Element, item: Object) -> None:
    box = element.find("bndbox")
    for tag, value in zip(_CORNERS, item.box_px, strict=True):
        corner = None if box is None else box.find(tag)
        if corner is not None:
            corner.text = _plain(value)


def _plain(value: float) -> str:
    """Returns a number as VOC's reader takes it: no exponent."""
    return np.format_float_positional(value, precision=20, trim="-")


def new_tree(item: Annotation, classes: tuple[str, ...]) -> tuple[Element, list[Change]]:
    """Returns VOC's annotation of an image of any layout, without exact duplicates."""
    tree, changes = Element("annotation"), []
    _set_size(tree, (item.width_px, item.height_px))
    seen = set[tuple[int, tuple[float, ...]]]()
    for label, corners, difficult in zip(
        item.labels.tolist(), item.boxes_px.tolist(), item.difficult.tolist(), strict=True
    ):
        name = classes[label]
        if (label, tuple(corners)) in seen:
            reason = f"removed: {name!r} at {tuple(corners)} is the same as another object"
            changes.append(Change(item.image_path, None, reason))
            continue
        seen.add((label, tuple(corners)))
        thing = ET.SubElement(tree, "object")
        ET.SubElement(thing, "name").text = name
        ET.SubElement(thing, "difficult").text = str(int(difficult))
        box = ET.SubElement(thing, "bndbox")
        for tag, value in zip(_CORNERS, corners, strict=True):
            ET.SubElement(box, tag).text = _plain(value)
    ET.indent(tree)
    return tree, changes
