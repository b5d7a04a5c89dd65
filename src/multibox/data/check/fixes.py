"""Corrects one image and its annotation, and records each change."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.data.dataset import Annotation, Object, fit_box
from multibox.data.files import read_bytes
from multibox.data.formats.voc_xml import (
    declared_size,
    object_elements,
    object_position,
    parse_object,
)
from multibox.data.image_metadata import (
    find_orientation,
    unusual_properties,
    without_orientation,
)
from multibox.data.images import MAX_BYTES, decode_image
from multibox.data.writing.voc import annotation_tree, plain_number, set_size
from multibox.errors import DataError

_SAVED_AS_PNG = ("cmyk", "sixteen-bit", "alpha", "animated")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KEPT_SHARE = 0.5
"""Minimum share of the area that clipping must leave. Otherwise the box is probably misplaced."""

_Box = tuple[float, float, float, float]
_Place = tuple[str, _Box]


class Change(NamedTuple):
    """Something that was changed or left out.

    Attributes:
        file: The file of the dataset.
        position: The place in the file, or None for the whole file.
        change: What was done, and why.
        removed: The classes of the objects that were removed, once for each object.
        is_rotation: Whether an image was rotated by its EXIF orientation.
    """

    file: Path
    position: str | None
    change: str
    removed: tuple[str, ...] = ()
    is_rotation: bool = False

    def as_json(self) -> dict[str, str | None]:
        """Returns the change as a JSON object."""
        return {"file": str(self.file), "position": self.position, "change": self.change}


class CorrectedImage(NamedTuple):
    """A corrected image file.

    Attributes:
        source: The image file of the dataset.
        data: The content of the new file.
        suffix: The suffix of the new file's name.
        size_px: (width, height).
        changes: What was changed.
    """

    source: Path
    data: bytes
    suffix: str
    size_px: tuple[int, int]
    changes: tuple[Change, ...]


def correct_image(path: Path) -> CorrectedImage:
    """Returns a corrected image file. The bytes of an image without faults stay the same.

    Raises:
        DataError: The image cannot be decoded.
    """
    data = read_bytes(path, limit=MAX_BYTES)
    image = decode_image(data, file=path)
    size_px = image.shape[1], image.shape[0]
    found = unusual_properties(data, path.suffix)
    for kind in _SAVED_AS_PNG:
        if kind in found:
            change = Change(path, None, f"saved as PNG with 8 bits per channel: {found[kind]}")
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
    """Corrects an annotation in place. Returns the changes, and the image, which may be rotated.

    Args:
        tree: A VOC annotation.
        file: The annotation file.
        image: The image.
        classes: The class names that objects may have. If empty, any name is allowed.

    Raises:
        DataError: The boxes belong to an image of another size, or no object can be used.
    """
    changes = []
    try:
        declared = declared_size(tree)
    except DataError:
        declared = 0, 0
    if declared != image.size_px:
        image = _rotated(image, declared)
    if declared != image.size_px:
        if min(declared) > 0 and not _all_fit(tree, image.size_px):
            raise DataError("its boxes were drawn on an image of another size", kind="size-differs")
        set_size(tree, image.size_px)
        written, found = (f"{width} x {height}" for width, height in (declared, image.size_px))
        changes.append(Change(file, None, f"size changed from {written} to {found}"))
    changes += _split_objects(tree, file)
    elements = object_elements(tree)
    seen = set[_Place]()
    for number, element in enumerate(elements, start=1):
        position = object_position(number, element)
        try:
            kept, done = _corrected(element, image.size_px, classes, seen)
        except DataError as error:
            tree.remove(element)
            reason = f"removed: {error.reason}"
            changes.append(Change(file, position, reason, class_names([element])))
            continue
        seen.add((kept.name, kept.box_px))
        if done:
            _set_box(element, kept)
            changes.append(Change(file, position, f"its {' and '.join(done)}"))
    if elements and not seen:
        raise DataError("none of its objects can be used", kind="nothing-to-learn")
    return image, changes


def class_names(elements: list[Element]) -> tuple[str, ...]:
    """Returns the class of each object."""
    return tuple((element.findtext("name") or "").strip() for element in elements)


def _split_objects(tree: Element, file: Path) -> list[Change]:
    """Makes each box of an object with several boxes an object of its own."""
    changes = []
    for number, element in enumerate(object_elements(tree), start=1):
        boxes = element.findall("bndbox")
        for box in boxes[1:]:
            element.remove(box)
            other = Element("object")
            other.extend(child for child in element if child.tag != "bndbox")
            other.append(box)
            tree.append(other)
        if len(boxes) > 1:
            change = f"its {len(boxes)} boxes became an object each"
            changes.append(Change(file, object_position(number, element), change))
    return changes


def _rotated(image: CorrectedImage, declared: tuple[int, int]) -> CorrectedImage:
    """Applies the EXIF orientation if the annotation was made on the image rotated like that."""
    data = read_bytes(image.source, limit=MAX_BYTES)
    orientation = find_orientation(data)
    if orientation is None or orientation.value < 5 or image.size_px[::-1] != declared:
        return image
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None or pixels.shape != (declared[1], declared[0], 3):
        return image
    reason = "rotated by its EXIF orientation, because its annotation has the size after rotation"
    change = Change(image.source, None, f"{reason}; saved as PNG", is_rotation=True)
    return CorrectedImage(image.source, _png(pixels), ".png", declared, (change,))


def _all_fit(tree: Element, size_px: tuple[int, int]) -> bool:
    for element in object_elements(tree):
        try:
            box_px = parse_object(element).box_px
        except DataError:
            continue
        try:
            fit_box(box_px, size_px)
        except DataError:
            return False
    return True


def _corrected(
    element: Element, size_px: tuple[int, int], classes: tuple[str, ...], seen: set[_Place]
) -> tuple[Object, list[str]]:
    """Returns an object with a valid box, and what was done to its box.

    Raises:
        DataError: The object has to be removed. The error names no file.
    """
    written = parse_object(element)
    if classes and written.name not in classes:
        raise DataError(f"its class is not one of {', '.join(classes)}", kind="class-unknown")
    (x0, x1), (y0, y1) = sorted(written.box_px[::2]), sorted(written.box_px[1::2])
    ordered = x0, y0, x1, y1
    try:
        kept = written._replace(box_px=fit_box(ordered, size_px))
    except DataError:
        kept = written._replace(box_px=_clipped(ordered, size_px))
    if (kept.name, kept.box_px) in seen:
        raise DataError("is the same as another object", kind="duplicate-object")
    done = ["reversed corners were swapped"] * (ordered != written.box_px)
    return kept, [*done, *["box was clipped"] * (kept.box_px != ordered)]


def _clipped(box_px: _Box, size_px: tuple[int, int]) -> _Box:
    """Returns the part of a box inside its image.

    Raises:
        DataError: Less than half of its area is inside. The error names no file.
    """
    left, top, right, bottom = box_px
    width, height = map(float, size_px)
    inside = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    area = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1])
    if left >= right or top >= bottom or area < _KEPT_SHARE * (right - left) * (bottom - top):
        raise DataError("its box is empty, or mostly outside of the image", kind="box-outside")
    return inside


def _set_box(element: Element, item: Object) -> None:
    box = element.find("bndbox")
    if box is None:
        # The object has an outline or a rotated box only.
        box = ET.SubElement(element, "bndbox")
    for tag, value in zip(_CORNERS, item.box_px, strict=True):
        corner = box.find(tag)
        if corner is None:
            corner = ET.SubElement(box, tag)
        corner.text = plain_number(value)


def new_tree(item: Annotation, classes: tuple[str, ...]) -> tuple[Element, list[Change]]:
    """Returns a VOC annotation for an image of any layout, without exact duplicates."""
    changes, kept = [], []
    seen = set[tuple[int, tuple[float, ...]]]()
    for place, (label, corners) in enumerate(
        zip(item.labels.tolist(), item.boxes_px.tolist(), strict=True)
    ):
        name = classes[label]
        if (label, tuple(corners)) in seen:
            reason = f"removed: {name!r} at {tuple(corners)} is the same as another object"
            changes.append(Change(item.image_path, None, reason, (name,)))
            continue
        seen.add((label, tuple(corners)))
        kept.append(place)
    return annotation_tree(item, classes, objects=kept), changes
