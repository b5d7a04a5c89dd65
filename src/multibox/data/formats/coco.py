"""Reads folders whose annotations are in COCO's JSON, in the official layout or an export's.

    annotations/instances_<split>.json    with the images in <split>/ or images/<split>/
    <split>/_annotations.coco.json        with the images beside it

Boxes are x, y, x + width and y + height, in pixels, and crowds are difficult objects
(`io.cpp:421-460`). Outlines, keypoints and captions are not read. A category's id, which may leave
gaps, holds within its file; everywhere else a class is its name. Nothing is ever written.
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
# Far outside any image, and yet no sum of two overflows.
_MAX_PX = 1e9
_LISTED_CATEGORIES = 12

_REPEATED = Note("category-twice", "categories whose name another has were read as the same class")

_Record = dict[str, Any]


class _Split(NamedTuple):
    """A split's annotations and the folder that its images' names begin at."""

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
    """Returns the annotated images of one or more splits, in the order of their files.

    An image's id is its file's name without the ending, as VOC's is, because the numbers in the
    files are unique within a split only; where several images of these splits share that name, it
    is the split and the whole name, `train/left/0001.jpg`.

    An image without annotations is kept, a box that leaves its image by up to a pixel is clipped,
    a missing `iscrowd` is 0, missing `width` and `height` are taken from the image, and categories
    of one name are one class.

    Args:
        root: The folder that holds `annotations`, or the splits' folders.
        splits: `train2017` or `train+valid`.
        classes: Names in the order of the labels; empty: those that an object has, by the ids of
            their categories.
        on_bad: Whether to raise all that cannot be used as one error, or to leave it out.
        images: Whether to look at each image's header and end, or to be content with the
            annotations.

    Raises:
        DataError: If a split or its images' folder is missing, its file is not JSON in COCO's
            form, or nothing can be used; with on_bad "fail" also if something cannot be used. The
            message then lists it all.
    """
    reading = Reading(root, classes, on_bad, images)
    chosen = _find_splits(root, splits, reading)
    numbers: dict[str, int] = {}
    found = [scene for split in chosen for scene in _read_split(split, numbers, reading)]
    used = {item.name for scene in found for item in scene.objects}
    listed = sorted(numbers, key=numbers.__getitem__)
    # Exports list a category above all others, which no object has.
    names = classes or tuple(name for name in listed if name in used)
    idle = [] if classes else [name for name in listed if name not in used]
    shown = ", ".join(map(repr, idle[:_LISTED_CATEGORIES]))
    left_out = f"{len(idle)} categories without an object were left out, {shown} among them"
    notes = [Note("category-idle", left_out)] if idle else []
    name = "+".join(split.name for split in chosen)
    return reading.conclude(name, _shortly_named(found), names, notes)


def annotation_files(root: Path) -> dict[str, Path]:
    """Returns the annotations of a folder by split; none where it has no layout of COCO's.

    Raises:
        DataError: If the folder, or its `annotations`, cannot be listed.
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
        # In a folder that this user may not enter, such as lost+found.
        return False


def _find_splits(root: Path, splits: str, reading: Reading) -> list[_Split]:
    """Returns the splits meant, in order and each once."""
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
                reason, kind="images-folder-missing", file=root, remedy="Put them there"
            )
        found[_Split(name, file, (there or folders)[0])] = None
    return list(found)


def _read_split(split: _Split, numbers: dict[str, int], reading: Reading) -> list[Scene]:
    """Returns the usable images; adds the categories' ids to the numbers of their names."""
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
                    f"its image_id is {image}, which no image has", kind="image-unknown"
                )
            category = _whole(record, "category_id")
            if category not in names:
                raise DataError(
                    f"its category_id is {category}, which no category has", kind="category-unknown"
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
                remedy="Choose a file of instances",
            )
    if not lists["images"]:
        raise DataError(
            "lists no image", kind="empty-split", file=file, remedy="Choose another split"
        )
    return {key: lists[key] for key in _LISTS}


def _without_outline(record: _Record) -> _Record:
    """Drops at once what would fill most of the memory."""
    record.pop("segmentation", None)
    return record


def _names(records: list[Any], file: Path) -> dict[int, str]:
    """Returns the categories' names by id; no object can be understood if one is wrong."""
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
    """Returns the images by id, without their objects yet; None for those that are left out."""
    scenes: dict[int, Scene | None] = {}
    for place, record in enumerate(records):
        position = _position("images", place, record)
        try:
            number = _id(record)
            known, scenes[number] = number in scenes, None
            if known:
                raise DataError(
                    "has the id of another image, which is left out as well", kind="duplicate-id"
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
        raise DataError("is not an object of JSON", kind="json-form")
    return _whole(record, "id")


def _position(key: str, place: int, record: Any) -> str:
    """Names a record by its place, counted from 0 as JSON's tools do, and its id."""
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
            f"its {key} is {reprlib.repr(value)}, not a plain text", kind="text-malformed"
        )
    return value


def _side(record: _Record, key: str) -> int:
    """Returns a width or height; 0 where there is none."""
    side = _whole(record, key) if key in record else 0
    if side > _MAX_PX:
        raise DataError(
            f"its {key} is {reprlib.repr(side)}, beyond any image", kind="size-too-large"
        )
    return side


def _file_name(record: _Record) -> PurePosixPath:
    """Returns an image's path below the folder of images, which it cannot leave."""
    text = _text(record, "file_name")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or not path.name:
        raise DataError(
            f"its file_name {text[:80]!r} is no path below the folder of images", kind="path-unsafe"
        )
    return path


def _box_px(record: _Record) -> tuple[float, float, float, float]:
    """Returns the corners; bool, NaN and numbers beyond any image are no numbers here."""
    bbox = record.get("bbox")
    if type(bbox) is not list or len(bbox) != 4 or not all(map(_is_plain, bbox)):
        raise DataError(
            f"its bbox is {reprlib.repr(bbox)}, not four plain numbers", kind="bbox-malformed"
        )
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def _area_px2(record: _Record) -> float | None:
    """Returns the area of the object's mask; None if it is absent."""
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
            f"its iscrowd is {reprlib.repr(flag)}, neither 0 nor 1", kind="difficult-malformed"
        )
    return flag == 1


def _is_plain(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_PX  # type: ignore[arg-type]  # a number


def _shortly_named(scenes: list[Scene]) -> list[Scene]:
    """Returns the images named by their files' stems, where only one has that stem."""
    stems = Counter(scene.path.stem for scene in scenes)
    return [
        scene._replace(image_id=scene.path.stem) if stems[scene.path.stem] == 1 else scene
        for scene in scenes
    ]
