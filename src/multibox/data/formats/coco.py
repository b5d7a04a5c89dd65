"""Reads folders with annotations in COCO's JSON, in one of two layouts.

The first layout is the official one, the second that of exports (for example from Roboflow):

    annotations/instances_<split>.json    with the images in <split>/ or images/<split>/
    <split>/_annotations.coco.json        with the images in the same folder

Boxes become x, y, x + width and y + height, in pixels, and crowds become difficult objects
(`io.cpp:421-460`). Outlines, keypoints and captions are not read. Category ids may have gaps and
are valid within their file only; everywhere else a class is identified by its name. Nothing is
written.
"""

import json
import reprlib
from pathlib import Path
from typing import Any

from multibox.data.dataset import Note, Object, Scene
from multibox.data.files import read_bytes
from multibox.data.formats.tree import FileTree
from multibox.data.reading import Reading
from multibox.errors import DataError

_OFFICIAL, _EXPORTED = "instances_", "_annotations.coco.json"
_LISTS = ("images", "annotations", "categories")
_MAX_JSON_BYTES = 1 << 30
# Limit of all coordinates, sides and areas. The sum of two such numbers does not overflow.
_MAX_PX = 1e9

_REPEATED = Note("category-twice", "categories with the name of another one were merged with it")

_Record = dict[str, Any]


def find_splits(tree: FileTree) -> dict[str, list[Path]]:
    """Returns the annotation files of each split: none if no file is in COCO's format."""
    splits: dict[str, list[Path]] = {}
    for file in tree.with_suffix(".json"):
        if file.name == _EXPORTED:
            splits.setdefault(tree.split_of(file), []).append(file)
        elif file.name.startswith(_OFFICIAL):
            splits.setdefault(file.stem.removeprefix(_OFFICIAL), []).append(file)
    return splits


def read_split(files: list[Path], tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    return [scene for file in files for scene in _read_file(file, tree, reading)]


def _read_file(file: Path, tree: FileTree, reading: Reading) -> list[Scene]:
    content = _load(file)
    names = _names(content["categories"], file)
    for number, name in names.items():
        reading.order.setdefault(name, number)
    repeated = len(names) - len(set(names.values()))
    if repeated:
        reading.notes[_REPEATED] += repeated
    scenes = _scenes(content["images"], file, tree, reading)
    seen: set[int] = set()
    for place, record in enumerate(content["annotations"]):
        try:
            number, image = _id(record), _whole(record, "image_id")
            if number in seen:
                raise DataError("has the id of another annotation", kind="duplicate-id")
            seen.add(number)
            if image not in scenes:
                raise DataError(
                    f"its image_id is {image}, but no image has this id", kind="image-unknown"
                )
            category = _whole(record, "category_id")
            if category not in names:
                raise DataError(
                    f"its category_id is {category}, but no category has this id",
                    kind="category-unknown",
                )
            scene = scenes[image]
            if scene is not None:
                item = Object(
                    names[category], _box_px(record), _is_crowd(record), _area_px2(record)
                )
                scene.objects.append(reading.fitted(item, scene.size_px))
        except DataError as error:
            reading.add_fault(error, file, _position("annotations", place, record))
    return [scene for scene in scenes.values() if scene is not None]


def _load(file: Path) -> dict[str, list[Any]]:
    """Returns the lists of a file in COCO's form."""
    try:
        data = read_bytes(file, limit=_MAX_JSON_BYTES)
        content = json.loads(data, object_hook=_without_outline)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"is not JSON: {error}", kind="json-malformed", file=file, remedy="Export it again"
        ) from None
    lists = content if type(content) is dict else {}
    for key in _LISTS:
        if type(lists.get(key)) is not list:
            raise DataError(
                f"has no list {key!r}",
                kind="json-form",
                file=file,
                remedy="Use a file of object instances in COCO's format",
            )
    if not lists["images"]:
        raise DataError(
            "lists no images", kind="empty-split", file=file, remedy="Choose another split"
        )
    return {key: lists[key] for key in _LISTS}


def _without_outline(record: _Record) -> _Record:
    """Drops the outlines while reading, because they would need most of the memory."""
    record.pop("segmentation", None)
    return record


def _names(records: list[Any], file: Path) -> dict[int, str]:
    """Returns the category names by id.

    Raises:
        DataError: A category is malformed. Its objects would have no class, so nothing is read.
    """
    names: dict[int, str] = {}
    for place, record in enumerate(records):
        try:
            number = _id(record)
            if number in names:
                raise DataError("has the id of another category", kind="duplicate-id")
            names[number] = _text(record, "name").strip()
        except DataError as error:
            position = _position("categories", place, record)
            raise DataError(error.reason, kind=error.kind, file=file, position=position) from None
    return names


def _scenes(
    records: list[Any], file: Path, tree: FileTree, reading: Reading
) -> dict[int, Scene | None]:
    """Returns the images by id, without their objects. An image that is left out is None."""
    scenes: dict[int, Scene | None] = {}
    for place, record in enumerate(records):
        position = _position("images", place, record)
        try:
            number = _id(record)
            known, scenes[number] = number in scenes, None
            if known:
                raise DataError(
                    "has the id of another image, so both are left out", kind="duplicate-id"
                )
            name = _text(record, "file_name")
            path = tree.find_image(name, beside=file, required=reading.images == "check")
            reading.list_once(str(path), f"{file}, {position}")
            declared = _side(record, "width"), _side(record, "height")
            size = reading.frame(declared, path)
            scenes[number] = Scene(str(tree.relative(path)), path, size, [])
        except DataError as error:
            reading.add_fault(error, file, position)
    return scenes


def _id(record: Any) -> int:
    if type(record) is not dict:
        raise DataError("is not a JSON object", kind="json-form")
    return _whole(record, "id")


def _position(key: str, place: int, record: Any) -> str:
    """Returns a record's position as text: its index, counted from 0, and its id."""
    number = record.get("id") if type(record) is dict else None
    return f"{key}[{place}] (id {number})" if type(number) is int else f"{key}[{place}]"


def _whole(record: _Record, key: str) -> int:
    value = record.get(key)
    if type(value) is not int:
        raise DataError(
            f"its {key} is {reprlib.repr(value)}, not a whole number", kind="number-malformed"
        )
    return value


def _text(record: _Record, key: str) -> str:
    value = record.get(key)
    if type(value) is not str or not value.strip() or not value.isprintable():
        raise DataError(
            f"its {key} is {reprlib.repr(value)}, not plain text", kind="text-malformed"
        )
    return value


def _side(record: _Record, key: str) -> int:
    """Returns a width or height, or 0 if it is missing."""
    side = _whole(record, key) if key in record else 0
    if side > _MAX_PX:
        raise DataError(
            f"its {key} is {reprlib.repr(side)}, larger than any image", kind="size-too-large"
        )
    return side


def _box_px(record: _Record) -> tuple[float, float, float, float]:
    """Returns x0, y0, x1 and y1. Rejects bool, NaN and numbers above `_MAX_PX`."""
    bbox = record.get("bbox")
    if type(bbox) is not list or len(bbox) != 4 or not all(map(_is_plain, bbox)):
        raise DataError(
            f"its bbox is {reprlib.repr(bbox)}, not four plain numbers", kind="bbox-malformed"
        )
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def _area_px2(record: _Record) -> float | None:
    """Returns the area of the object's mask, or None if it is missing."""
    area = record.get("area")
    if area is None:
        return None
    if not _is_plain(area) or area < 0:
        reason = f"its area is {reprlib.repr(area)}, not a plain number"
        raise DataError(reason, kind="number-malformed")
    return float(area)


def _is_crowd(record: _Record) -> bool:
    flag = record.get("iscrowd", 0)
    if type(flag) is not int or flag not in (0, 1):
        raise DataError(
            f"its iscrowd is {reprlib.repr(flag)}, not 0 or 1", kind="difficult-malformed"
        )
    return flag == 1


def _is_plain(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_PX  # type: ignore[arg-type]  # a number
