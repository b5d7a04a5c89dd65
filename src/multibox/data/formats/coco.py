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
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from multibox.data.dataset import Dataset, Note, Object, Scene
from multibox.data.images import list_folder, read_bytes
from multibox.data.reading import Reading
from multibox.errors import DataError

_OFFICIAL, _EXPORTED = "annotations/instances_", "_annotations.coco.json"
_LISTS = ("images", "annotations", "categories")
_MAX_JSON_BYTES = 1 << 30
# Limit of all coordinates, sides and areas. The sum of two such numbers does not overflow.
_MAX_PX = 1e9
_LISTED_CATEGORIES = 12

_REPEATED = Note("category-twice", "categories with the name of another one were merged with it")

_Record = dict[str, Any]


class _Split(NamedTuple):
    """A split's annotation file, and the folder that its image names are relative to."""

    name: str
    file: Path
    images: Path


def read_coco(
    root: Path,
    splits: str,
    *,
    classes: tuple[str, ...] = (),
    on_bad: Literal["fail", "skip"] = "fail",
    images: Literal["check", "ignore"] = "check",
) -> Dataset:
    """Reads the annotated images of one or more splits, in the order of their files.

    The id of an image is its file name without the suffix, as in VOC, because COCO's numbers are
    unique within a split only. If several images of these splits share that name, the id is the
    split and the path, for example `train/left/0001.jpg`.

    Images without annotations are kept. A box that leaves its image by up to one pixel is clipped.
    If `iscrowd` is missing, it is 0. If `width` and `height` are missing, the size of the image is
    used. Categories with the same name are one class.

    Args:
        root: The folder that holds `annotations`, or the folders of the splits.
        splits: The names of the splits, joined by `+`, for example `train2017` or `train+valid`.
        classes: Class names in label order. If empty, the names of all categories with objects,
            sorted by category id.
        on_bad: Whether to raise all faults as one error ("fail"), or to leave out the faulty images
            and objects ("skip").
        images: Whether to check each image's header and end ("check"), or to read the annotations
            only ("ignore").

    Raises:
        DataError: A split or its image folder is missing, a file is not JSON in COCO's form, or no
            image can be used. If `on_bad` is "fail", also if there is any fault; the message lists
            the faults.
    """
    reading = Reading(root, classes, on_bad, images)
    chosen = _find_splits(root, splits, reading)
    numbers: dict[str, int] = {}
    found = [scene for split in chosen for scene in _read_split(split, numbers, reading)]
    used = {item.name for scene in found for item in scene.objects}
    listed = sorted(numbers, key=numbers.__getitem__)
    # Some exports list a parent category that has no objects.
    names = classes or tuple(name for name in listed if name in used)
    unused = [] if classes else [name for name in listed if name not in used]
    shown = ", ".join(map(repr, unused[:_LISTED_CATEGORIES]))
    left_out = f"{len(unused)} categories without objects were left out, including {shown}"
    notes = [Note("category-idle", left_out)] if unused else []
    name = "+".join(split.name for split in chosen)
    return reading.conclude(name, _shortly_named(found), names, notes)


def annotation_files(root: Path) -> dict[str, Path]:
    """Returns the annotation files of a folder by split: none if it has no COCO layout.

    Raises:
        DataError: The folder or its `annotations` cannot be listed.
    """
    official = [
        path for path in list_folder((root / _OFFICIAL).parent) if path.match(f"{_OFFICIAL}*.json")
    ]
    exported = [folder / _EXPORTED for folder in list_folder(root)]
    return {path.parent.name: path for path in exported if _is_there(path)} | {
        path.stem.partition("_")[2]: path for path in official
    }


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        # The user may not enter the folder, such as lost+found.
        return False


def _find_splits(root: Path, splits: str, reading: Reading) -> list[_Split]:
    """Returns the named splits, without repetitions."""
    files = annotation_files(root)
    found: dict[_Split, None] = {}
    for name in splits.split("+"):
        if name not in files:
            known = ", ".join(sorted(files)) or f"none: there is no {_OFFICIAL}<split>.json"
            raise DataError(
                f"has no split {name!r}",
                kind="split-missing",
                file=root,
                remedy=f"Choose from {known}",
            )
        file = files[name]
        official = [root / name, root / "images" / name]
        folders = [file.parent] if file.name == _EXPORTED else official
        there = [folder for folder in folders if folder.is_dir()]
        if reading.images == "check" and not there:
            reason = f"the images of {name!r} are neither in {folders[0]} nor in {folders[1]}"
            raise DataError(
                reason,
                kind="images-folder-missing",
                file=root,
                remedy="Move them to one of these folders",
            )
        found[_Split(name, file, (there or folders)[0])] = None
    return list(found)


def _read_split(split: _Split, numbers: dict[str, int], reading: Reading) -> list[Scene]:
    """Returns the usable images. Adds new category names and their ids to `numbers`."""
    content = _load(split.file)
    names = _names(content["categories"], split.file)
    for number, name in names.items():
        numbers.setdefault(name, number)
    repeated = len(names) - len(set(names.values()))
    if repeated:
        reading.notes[_REPEATED] += repeated
    scenes = _scenes(content["images"], split, reading)
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
            reading.add_fault(error, split.file, _position("annotations", place, record))
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


def _scenes(records: list[Any], split: _Split, reading: Reading) -> dict[int, Scene | None]:
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
            name = _file_name(record)
            path = split.images / name
            reading.list_once(str(path), f"{split.file}, {position}")
            declared = _side(record, "width"), _side(record, "height")
            size = reading.frame(declared, path)
            scenes[number] = Scene(f"{split.name}/{name}", path, size, [])
        except DataError as error:
            reading.add_fault(error, split.file, position)
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


def _file_name(record: _Record) -> PurePosixPath:
    """Returns an image's path relative to the image folder. It must not leave the folder."""
    text = _text(record, "file_name")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or not path.name:
        raise DataError(
            f"its file_name {text[:80]!r} is not a path in the image folder", kind="path-unsafe"
        )
    return path


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


def _shortly_named(scenes: list[Scene]) -> list[Scene]:
    """Shortens each image's id to its file's stem if no other image has that stem."""
    stems = Counter(scene.path.stem for scene in scenes)
    return [
        scene._replace(image_id=scene.path.stem) if stems[scene.path.stem] == 1 else scene
        for scene in scenes
    ]


def result_ids(root: Path, split: str) -> tuple[dict[int, Path], dict[int, str]]:
    """Returns a split's image files and category names by their ids in the annotation file.

    Results in COCO's format refer to these ids.

    Raises:
        DataError: The folder is not in COCO layout, several splits are named, or a record is
            malformed.
    """
    if not annotation_files(root):
        raise DataError(
            "is not in COCO layout, so the image ids in a JSON file of results are unknown",
            kind="layout-unknown",
            file=root,
            remedy="Use a folder of the devkit's results files, or a dataset in COCO layout",
        )
    if "+" in split:
        raise DataError(
            f"image ids are unique within a split only, but {split} are several",
            kind="duplicate-id",
            file=root,
            remedy="Evaluate one split at a time",
        )
    (chosen,) = _find_splits(root, split, Reading(root, (), "fail", "ignore"))
    content = _load(chosen.file)
    paths = {_id(record): chosen.images / _file_name(record) for record in content["images"]}
    return paths, _names(content["categories"], chosen.file)
