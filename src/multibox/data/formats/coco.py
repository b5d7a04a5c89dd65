"""Reads annotations in COCO's JSON, anywhere in a folder.

These files are read, the first kind that exists:

    instances_<split>.json      of COCO's own, and of CVAT (instances_default.json)
    _annotations.coco.json      of Roboflow, in the folder of each split
    any other name              if the file begins and ends like COCO's JSON

A split is named by the file or its folder (see `FileTree.split_of`). Images may lie anywhere in the
dataset's folder.

Boxes become x, y, x + width and y + height, in pixels, and crowds become difficult objects
(`io.cpp:421-460`). Outlines are read only for objects without a box; keypoints and captions are not
read. Category ids may have gaps and are valid within their file only; everywhere else a class is
identified by its name. Nothing is written.
"""

import re
import reprlib
from pathlib import Path
from typing import Any

from multibox.data.dataset import Note, Object, Scene
from multibox.data.formats.json_files import (
    Record,
    are_plain,
    ends_of_files,
    has_key,
    identifier,
    is_plain,
    load,
    require_object,
    side_px,
    some_of,
    text,
)
from multibox.data.formats.outlines import OUTLINED, Box, bounds, mask_bounds
from multibox.data.formats.tree import UNSPLIT, FileTree
from multibox.data.reading import Reading
from multibox.errors import DataError

_OFFICIAL, _EXPORTED = "instances_", "_annotations.coco.json"
# COCO's own files without boxes.
_OTHERS = ("captions_", "image_info_", "panoptic_")
_LISTS = ("images", "annotations", "categories")
_NO, _YES = (None, 0, "0"), (1, "1")
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,20})?")
_FORM = "Use a file of object instances in COCO's format"

_REPEATED = Note("category-twice", "categories with the name of another one were merged with it")
_IDS = Note("annotation-ids", "annotations have no id or the id of another one; ids are not needed")


def find_splits(tree: FileTree) -> dict[str, list[Path]]:
    """Returns the annotation files of each split: none if no file is in COCO's format."""
    files = tree.with_suffix(".json")
    known = [
        path for path in files if path.name == _EXPORTED or path.name.startswith(_OFFICIAL)
    ] or [path for path, ends in ends_of_files(files).items() if _is_coco(path, ends)]
    splits: dict[str, list[Path]] = {}
    for file in known:
        splits.setdefault(_split_of(file, tree), []).append(file)
    return splits


def _split_of(file: Path, tree: FileTree) -> str:
    if not file.name.startswith(_OFFICIAL):
        return tree.split_of(file)
    name = file.stem.removeprefix(_OFFICIAL)
    return UNSPLIT if name in ("default", "") else name


def _is_coco(file: Path, ends: str) -> bool:
    """Whether a file begins and ends like COCO's instances. Captions have no categories."""
    return (
        ends.startswith("{")
        and has_key(ends, *_LISTS)
        and has_key(ends, "category_id", "categories", "supercategory")
        and has_key(ends, "file_name", "image_id", "images")
        and not file.name.startswith(_OTHERS)
    )


def read_split(files: list[Path], tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    return [scene for file in files for scene in _read_file(file, tree, reading)]


def _read_file(file: Path, tree: FileTree, reading: Reading) -> list[Scene]:
    content = _load(file)
    names = _names(content["categories"], file)
    for number, name in names.items():
        if type(number) is int:
            reading.order.setdefault(name, number)
    repeated = len(names) - len(set(names.values()))
    if repeated:
        reading.notes[_REPEATED] += repeated
    scenes = _scenes(content["images"], file, tree, reading)
    seen: set[int | str | None] = set()
    unnumbered = 0
    for place, record in enumerate(content["annotations"]):
        try:
            own_id = _own_id(require_object(record))
            unnumbered += own_id is None or own_id in seen
            seen.add(own_id)
            scene = _scene_of(record, scenes)
            name = _name_of(record, names)
            if scene is not None:
                item = Object(name, _box_px(record, reading), _is_crowd(record), _area_px2(record))
                scene.objects.append(reading.fitted(item, scene.size_px))
        except DataError as error:
            reading.add_fault(error, file, _position("annotations", place, record))
    if unnumbered:
        reading.notes[_IDS] += unnumbered
    return [scene for scene in scenes.values() if scene is not None]


def _load(file: Path) -> dict[str, list[Any]]:
    """Returns the lists of a file in COCO's form."""
    content = load(file, _without_outline)
    lists = content if type(content) is dict else {}
    for key in _LISTS:
        if type(lists.get(key)) is not list:
            raise DataError(f"has no list {key!r}", kind="json-form", file=file, remedy=_FORM)
    if not lists["images"]:
        raise DataError(
            "lists no images", kind="empty-split", file=file, remedy="Choose another split"
        )
    return {key: lists[key] for key in _LISTS}


def _without_outline(record: Record) -> Record:
    """Drops the outlines that are not needed, because they would need most of the memory."""
    if record.get("bbox"):
        record.pop("segmentation", None)
    return record


def _names(records: list[Any], file: Path) -> dict[int | str, str]:
    """Returns the category names by id.

    Raises:
        DataError: A category is malformed. Its objects would have no class, so nothing is read.
    """
    names: dict[int | str, str] = {}
    for place, record in enumerate(records):
        try:
            number = identifier(require_object(record), "id")
            if number in names:
                raise DataError("has the id of another category", kind="duplicate-id")
            names[number] = text(record, "name").strip()
        except DataError as error:
            position = _position("categories", place, record)
            raise DataError(error.reason, kind=error.kind, file=file, position=position) from None
    return names


def _scenes(
    records: list[Any], file: Path, tree: FileTree, reading: Reading
) -> dict[int | str, Scene | None]:
    """Returns the images by id, without their objects. An image that is left out is None."""
    scenes: dict[int | str, Scene | None] = {}
    for place, record in enumerate(records):
        position = _position("images", place, record)
        try:
            number = identifier(require_object(record), "id")
            known, scenes[number] = number in scenes, None
            if known:
                raise DataError(
                    "has the id of another image, so both are left out", kind="duplicate-id"
                )
            name = text(record, "file_name")
            path = tree.find_image(name, beside=file, required=reading.images == "check")
            reading.list_once(str(path), f"{file}, {position}")
            declared = side_px(record, "width"), side_px(record, "height")
            size = reading.frame(declared, path)
            scenes[number] = Scene(str(tree.relative(path)), path, size, [])
        except DataError as error:
            reading.add_fault(error, file, position)
    return scenes


def _position(key: str, place: int, record: Any) -> str:
    """Returns a record's position as text: its index, counted from 0, and its id."""
    number = record.get("id") if type(record) is dict else None
    return f"{key}[{place}] (id {number})" if type(number) is int else f"{key}[{place}]"


def _own_id(record: Record) -> int | str | None:
    """Returns an annotation's id. Nothing refers to it, so it may be missing or malformed."""
    try:
        return identifier(record, "id")
    except DataError:
        return None


def _scene_of(record: Record, scenes: dict[int | str, Scene | None]) -> Scene | None:
    image = identifier(record, "image_id")
    if image not in scenes:
        raise DataError(
            f"its image_id is {reprlib.repr(image)}, but no image has this id",
            kind="image-unknown",
        )
    return scenes[image]


def _name_of(record: Record, names: dict[int | str, str]) -> str:
    category = identifier(record, "category_id")
    if category not in names:
        raise DataError(
            f"its category_id is {reprlib.repr(category)}, but the categories have the ids "
            f"{some_of(map(reprlib.repr, names)) or '(none)'}",
            kind="category-unknown",
        )
    return names[category]


def _box_px(record: Record, reading: Reading) -> Box:
    """Returns x0, y0, x1 and y1, of the outline if there is no box."""
    bbox = record.get("bbox")
    outline = record.get("segmentation")
    if not bbox and outline:
        box = _outline_box(outline)
        reading.notes[OUTLINED] += 1
        return box
    if type(bbox) is not list or not are_plain(bbox, 4):
        raise DataError(
            f"its bbox is {reprlib.repr(bbox)}, not four plain numbers", kind="bbox-malformed"
        )
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def _outline_box(outline: Any) -> Box:
    """Returns the box around polygons, or around a mask in run lengths.

    Raises:
        DataError: The outline is in neither form. The error names no file.
    """
    if type(outline) is dict:
        box = mask_bounds(outline.get("counts"), outline.get("size"))
        if box:
            return box
    elif type(outline) is list and all(map(_is_polygon, outline)):
        xs, ys = ([number for part in outline for number in part[axis::2]] for axis in (0, 1))
        return bounds(xs, ys)
    raise DataError(
        f"it has no bbox, and its segmentation is {reprlib.repr(outline)}, neither polygons nor "
        "run lengths of a mask",
        kind="outline-malformed",
    )


def _is_polygon(part: Any) -> bool:
    count = len(part) if type(part) is list else 0
    return count > 0 and count % 2 == 0 and are_plain(part, count)


def _area_px2(record: Record) -> float | None:
    """Returns the area of the object's mask, or None if it is missing."""
    area = record.get("area")
    if type(area) is str and _DECIMAL.fullmatch(area):
        area = float(area)
    if area is None:
        return None
    if not is_plain(area) or area < 0:
        reason = f"its area is {reprlib.repr(area)}, not a plain number"
        raise DataError(reason, kind="number-malformed")
    return float(area)


def _is_crowd(record: Record) -> bool:
    flag = record.get("iscrowd")
    if flag not in (*_NO, *_YES):
        raise DataError(
            f"its iscrowd is {reprlib.repr(flag)}, not 0 or 1", kind="difficult-malformed"
        )
    return flag in _YES


def result_ids(root: Path, split: str) -> tuple[dict[int, Path], dict[int, str]]:
    """Returns a split's image files and category names by their ids in the annotation file.

    Results in COCO's format refer to these ids.

    Raises:
        DataError: The dataset is not COCO JSON, the split has several files, or a record is
            malformed.
    """
    tree = FileTree(root)
    splits = find_splits(tree)
    if not splits:
        raise DataError(
            "is not in COCO's format, so the image ids in a JSON file of results are unknown",
            kind="layout-unknown",
            file=root,
            remedy="Use a folder of the devkit's results files, or a dataset in COCO's format",
        )
    if len(splits.get(split, ())) != 1:
        raise DataError(
            f"image ids are unique within a file only, but {split!r} is not one file",
            kind="duplicate-id",
            file=root,
            remedy=f"Evaluate one of {', '.join(splits)}",
        )
    (file,) = splits[split]
    content = _load(file)
    paths = {
        identifier(require_object(record), "id"): tree.find_image(
            text(record, "file_name"), beside=file, required=False
        )
        for record in content["images"]
    }
    names = _names(content["categories"], file)
    return (
        {number: path for number, path in paths.items() if isinstance(number, int)},
        {number: name for number, name in names.items() if isinstance(number, int)},
    )
