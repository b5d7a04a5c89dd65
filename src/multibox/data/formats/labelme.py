"""Reads annotations of LabelMe and X-AnyLabeling: a JSON file for each image.

The image is the file that `imagePath` names. A copy of it inside the annotation (`imageData`) is
not read. An object's box is the box around its shape. Shapes of one group that are not rectangles
are parts of one object (`labelme2coco.py` of LabelMe), and its box is around all of them. Nothing
is written.
"""

import math
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from multibox.data.dataset import Note, Object, Scene
from multibox.data.formats.json_files import (
    Record,
    are_plain,
    ends_of_files,
    has_key,
    leave_out_other,
    load,
    require_object,
    side_px,
    text,
)
from multibox.data.formats.outlines import NO_BOX, OUTLINED, Box, bounds, inside
from multibox.data.formats.tree import FileTree
from multibox.data.reading import Reading
from multibox.errors import DataError

_NO_BOX = ("point", "line")
_JOINED = Note("box-joined", "parts of objects were joined to the box around their group")


class _Shape(NamedTuple):
    """A shape with an area.

    Attributes:
        item: The object, with the box around the shape.
        group: What the parts of one object have in common, or None if it has one part.
    """

    item: Object
    group: tuple[str, object] | None


def find_splits(tree: FileTree) -> dict[str, list[Path]]:
    """Returns the JSON files of each split: none if no file is in LabelMe's format."""
    files = tree.with_suffix(".json")
    folders = {path.parent for path, ends in ends_of_files(files).items() if _is_labelme(ends)}
    splits: dict[str, list[Path]] = {}
    for file in files:
        if file.parent in folders:
            # The file has the name of its image. The image of a train is in no split.
            splits.setdefault(tree.split_of(file.with_name("_")), []).append(file)
    return splits


def _is_labelme(ends: str) -> bool:
    return (
        ends.startswith("{")
        and has_key(ends, "shapes")
        and has_key(ends, "imagePath", "imageData", "imageHeight", "points")
    )


def read_split(files: list[Path], tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    scenes = []
    for file in files:
        try:
            content = load(file)
            if type(content) is dict and type(content.get("shapes")) is list:
                scenes.append(_read_image(content, file, tree, reading))
            else:
                leave_out_other(reading)
        except DataError as error:
            reading.add_fault(error, file)
    return scenes


def _read_image(content: Record, file: Path, tree: FileTree, reading: Reading) -> Scene:
    name = text(content, "imagePath")
    try:
        path = tree.find_image(name, beside=file, required=reading.images == "check")
    except DataError as error:
        if error.kind != "image-missing" or content.get("imageData") is None:
            raise
        reason = f"{error.reason}. Its copy in imageData is not read: save it as a file"
        raise DataError(reason, kind=error.kind) from None
    reading.list_once(str(path), str(file))
    size_px = reading.frame((side_px(content, "imageWidth"), side_px(content, "imageHeight")), path)
    shapes = list[_Shape]()
    for place, record in enumerate(content["shapes"]):
        try:
            shape = _read_shape(require_object(record), size_px, reading)
            if shape:
                shapes.append(shape)
        except DataError as error:
            reading.add_fault(error, file, _position(place, record))
    return Scene(str(tree.relative(path)), path, size_px, _joined(shapes, reading))


def _position(place: int, record: Any) -> str:
    """Returns a shape's position as text: its index, counted from 0, and its label."""
    label = record.get("label") if type(record) is dict else None
    return f"shapes[{place}] ({label[:40]!r})" if type(label) is str else f"shapes[{place}]"


def _read_shape(record: Record, size_px: tuple[int, int], reading: Reading) -> _Shape | None:
    """Returns a shape with an area, or None for a point or a line."""
    # Old versions write no type, because all shapes were polygons.
    kind = text(record, "shape_type") if record.get("shape_type") else "polygon"
    if kind in _NO_BOX:
        reading.notes[NO_BOX] += 1
        return None
    name = text(record, "label").strip()
    flag = record.get("difficult")
    if flag not in (None, 0, 1):
        reason = f"its difficult is {reprlib.repr(flag)}, not true or false"
        raise DataError(reason, kind="difficult-malformed")
    box = _box_px(record, kind, size_px, reading)
    if box is None:
        reading.notes[NO_BOX] += 1
        return None
    item = reading.fitted(Object(name, box, bool(flag)), size_px)
    if kind == "rectangle":
        return _Shape(item, None)
    reading.notes[OUTLINED] += 1
    group = record.get("group_id")
    return _Shape(item, (name, group) if type(group) in (int, str) else None)


def _box_px(record: Record, kind: str, size_px: tuple[int, int], reading: Reading) -> Box | None:
    """Returns the box around a shape, or None if it is made of points without an area."""
    points = record.get("points")
    if type(points) is not list or not points or not all(are_plain(point, 2) for point in points):
        reason = f"its points are {reprlib.repr(points)}, not pairs of plain numbers"
        raise DataError(reason, kind="outline-malformed")
    if kind == "circle":
        if len(points) != 2:
            reason = f"its circle has {len(points)} points, not a centre and a point on the edge"
            raise DataError(reason, kind="outline-malformed")
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return inside((x - radius, y - radius, x + radius, y + radius), size_px, reading)
    box = bounds([x for x, _ in points], [y for _, y in points])
    flat = box[0] == box[2] or box[1] == box[3]
    return None if flat and kind in ("linestrip", "points") else box


def _joined(shapes: list[_Shape], reading: Reading) -> list[Object]:
    """Returns the objects. Shapes of one group become one object, where the first of them was."""
    objects: dict[object, Object] = {}
    for place, (item, group) in enumerate(shapes):
        key = place if group is None else group
        if key in objects:
            reading.notes[_JOINED] += 1
            other = objects[key]
            (x0, y0, x1, y1), (x2, y2, x3, y3) = other.box_px, item.box_px
            box = bounds((x0, x1, x2, x3), (y0, y1, y2, y3))
            item = other._replace(box_px=box, difficult=other.difficult or item.difficult)
        objects[key] = item
    return list(objects.values())
