"""Reads Label Studio's own JSON: exports as JSON and JSON-MIN, and the files of a cloud storage.

An export is a list of tasks. A cloud storage holds one file for each task or annotation. Of several
annotations of an image, the last one that was not cancelled is used. Predictions are ignored.

Positions and sizes are percentages of the image's width and height. A rectangle is rotated about
its upper left corner, clockwise. An object's box is the upright box around its region. A region
with several labels is an object of each class. Nothing is written.
"""

import math
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from multibox.data.dataset import Note, Object, Scene
from multibox.data.files import SUFFIXES
from multibox.data.formats.json_files import (
    Record,
    are_plain,
    ends_of_files,
    has_key,
    is_plain,
    leave_out_other,
    load,
    require_object,
    side_px,
)
from multibox.data.formats.outlines import (
    NO_BOX,
    OUTLINED,
    ROTATED,
    Box,
    bounds,
    ellipse_bounds,
    inside,
)
from multibox.data.formats.tree import FileTree, image_parts
from multibox.data.reading import Reading
from multibox.errors import DataError

# A rectangle and its label are two regions with one id if the labels are a tag of their own.
_UNLABELLED = ("rectangle", "polygon", "ellipse", "keypoint", "brush")
_DECIMALS = 9
"""Fractions of a pixel are rounded to this, because a percentage is not exact."""

_REPEATED = Note("annotated-twice", "annotations were left out because a later one is used")
_UNFINISHED = Note("image-unannotated", "tasks without a finished annotation were left out")


class _Annotation(NamedTuple):
    """An annotation of an image.

    Attributes:
        file: The file.
        position: The task's place in the file as text. None if the file holds one task.
        image: The name of the image.
        regions: The regions, as in the file.
    """

    file: Path
    position: str | None
    image: str
    regions: list[Any]


def find_splits(tree: FileTree) -> dict[str, list[Path]]:
    """Returns the files of each split: none if no file is in Label Studio's format."""
    # The files of a cloud storage have the number of a task or annotation as their name.
    files = [path for path in tree.files if path.suffix.lower() == ".json" or path.name.isdigit()]
    folders = {path.parent for path, ends in ends_of_files(files).items() if _is_own(ends)}
    splits: dict[str, list[Path]] = {}
    for file in files:
        if file.parent in folders:
            splits.setdefault(tree.split_of(file), []).append(file)
    return splits


def _is_own(ends: str) -> bool:
    exported = has_key(ends, "data") and has_key(ends, "annotations", "completions", "result")
    return (
        ends.startswith(("[", "{"))
        and (exported or has_key(ends, "annotation_id"))
        and has_key(ends, "from_name", "original_width", "completed_by", "lead_time", "annotator")
    )


def read_split(files: list[Path], tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    latest: dict[str, _Annotation] = {}
    # The file 10 of a storage is later than the file 9.
    for file in sorted(files, key=lambda path: (path.parent, len(path.name), path.name)):
        try:
            for annotation in _read_file(file, reading):
                if annotation.image in latest:
                    reading.notes[_REPEATED] += 1
                latest[annotation.image] = annotation
        except DataError as error:
            reading.add_fault(error, file)
    scenes = []
    for annotation in latest.values():
        try:
            scenes.append(_read_image(annotation, tree, reading))
        except DataError as error:
            reading.add_fault(error, annotation.file, annotation.position)
    return scenes


def _read_file(file: Path, reading: Reading) -> Iterator[_Annotation]:
    """Yields the annotations in a file that were not cancelled, in their order."""
    content = load(file)
    tasks = content if type(content) is list else [content]
    if not any(map(_is_task, tasks)):
        leave_out_other(reading)
        return
    for place, task in enumerate(tasks):
        position = f"[{place}]" if type(content) is list else None
        try:
            if not _is_task(task):
                raise DataError("is not a task of Label Studio", kind="json-form")
            number = task.get("id")
            if position and type(number) is int:
                position = f"{position} (id {number})"
            data, results = _results(task)
            if not results:
                reading.notes[_UNFINISHED] += 1
            for regions in results:
                yield _Annotation(file, position, _image_name(data), regions)
        except DataError as error:
            reading.add_fault(error, file, position)


def _is_task(record: Any) -> bool:
    return type(record) is dict and ("annotation_id" in record or type(_data_of(record)) is dict)


def _data_of(record: Record) -> Any:
    task = record.get("task")
    return task.get("data") if type(task) is dict else record.get("data")


def _results(record: Record) -> tuple[Record, list[list[Any]]]:
    """Returns a task's data, and the regions of each annotation that was not cancelled.

    Raises:
        DataError: The annotations or regions are not lists. The error names no file.
    """
    data = _data_of(record)
    if type(data) is not dict:
        # JSON-MIN: the data lie beside one list of regions for each kind of label.
        lists = [value for value in record.values() if type(value) is list]
        return record, [[region for regions in lists for region in regions]]
    found = record.get("annotations", record.get("completions"))
    if type(record.get("task")) is dict:
        # An annotation, with the task in it.
        found = [record]
    results = []
    for annotation in [] if found is None else _require_list(found, "annotations"):
        if not require_object(annotation).get("was_cancelled"):
            results.append(_require_list(annotation.get("result"), "result"))
    return data, results


def _require_list(value: Any, key: str) -> list[Any]:
    if type(value) is not list:
        raise DataError(f"its {key} is {reprlib.repr(value)}, not a list", kind="json-form")
    return value


def _image_name(data: Record) -> str:
    """Returns the path or address of the image, under any key.

    Raises:
        DataError: There is none. The error names no file.
    """
    texts = [value for value in data.values() if type(value) is str and value.isprintable()]
    for value in texts:
        parts = image_parts(value)
        if parts and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES:
            return value
    for value in texts:
        if "/" in value and image_parts(value):
            return value
    raise DataError(f"its data {reprlib.repr(data)} name no image", kind="field-missing")


def _read_image(annotation: _Annotation, tree: FileTree, reading: Reading) -> Scene:
    file, position, image, regions = annotation
    path = tree.find_image(image, beside=file, required=reading.images == "check")
    reading.list_once(str(path), f"{file}, {position}" if position else str(file))
    sized = next((one for one in regions if type(one) is dict and "original_width" in one), {})
    declared = side_px(sized, "original_width"), side_px(sized, "original_height")
    size_px = reading.frame(declared, path)
    labelled = {_id_of(one) for one in regions if type(one) is dict and _labels(_value(one))}
    scene = Scene(str(tree.relative(path)), path, size_px, [])
    for place, region in enumerate(regions):
        try:
            scene.objects.extend(_objects(region, labelled, size_px, reading))
        except DataError as error:
            where = f"region {place}"
            reading.add_fault(error, file, f"{position}, {where}" if position else where)
    return scene


def _value(region: Record) -> Record:
    """Returns a region's shape and labels. In JSON-MIN, they are not an object of their own."""
    value = region.get("value", region)
    return value if type(value) is dict else {}


def _id_of(region: Record) -> str | None:
    number = region.get("id")
    return number if type(number) is str else None


def _labels(value: Record) -> list[Any]:
    """Returns the labels in a list called `rectanglelabels`, `labels` and so on."""
    for key, labels in value.items():
        if key.endswith("labels") and type(labels) is list:
            return labels
    return []


def _objects(
    region: Any, labelled: set[str | None], size_px: tuple[int, int], reading: Reading
) -> list[Object]:
    """Returns an object for each label of a region; none if it is a choice, a text or a point."""
    if type(region) is not dict:
        # JSON-MIN has lists of other things, too.
        return []
    value, kind = _value(region), region.get("type")
    labels = _labels(value)
    if not labels:
        is_shape = kind in _UNLABELLED or (type(kind) is str and kind.endswith("labels"))
        if is_shape and not (_id_of(region) and _id_of(region) in labelled):
            raise DataError("has no label", kind="name-empty")
        return []
    if region.get("image_rotation"):
        reason = f"its image was rotated by {reprlib.repr(region['image_rotation'])} degrees"
        raise DataError(reason, kind="image-rotated")
    box = _box_px(value, size_px, reading)
    if box is None:
        reading.notes[NO_BOX] += 1
        return []
    objects = []
    for label in labels:
        if type(label) is not str or not label.strip() or not label.isprintable():
            reason = f"its label is {reprlib.repr(label)}, not plain text"
            raise DataError(reason, kind="text-malformed")
        objects.append(reading.fitted(Object(label.strip(), box, False), size_px))
    return objects


def _box_px(value: Record, size_px: tuple[int, int], reading: Reading) -> Box | None:
    """Returns the upright box around a region, or None if it is a point."""
    width, height = size_px
    if "points" in value:
        points = value["points"]
        if type(points) is not list or not points or not all(are_plain(each, 2) for each in points):
            reason = f"its points are {reprlib.repr(points)}, not pairs of plain numbers"
            raise DataError(reason, kind="outline-malformed")
        reading.notes[OUTLINED] += 1
        xs, ys = [x * width / 100 for x, _ in points], [y * height / 100 for _, y in points]
        return _rounded(bounds(xs, ys))
    if "x" not in value or "y" not in value:
        shown = ", ".join(map(str, value))[:80]
        reason = f"no box can be made of its shape ({shown})"
        raise DataError(reason, kind="shape-unsupported")
    x, y = _numbers(value, ("x", "y"), size_px)
    turn = _numbers({"rotation": 0} | value, ("rotation",), (100,))[0]
    angle = math.radians(turn)
    if "radiusX" in value:
        rx, ry = _numbers(value, ("radiusX", "radiusY"), size_px)
        reading.notes[OUTLINED] += 1
        return inside(_rounded(ellipse_bounds((x, y), (rx, ry), angle)), size_px, reading)
    if "height" not in value:
        return None
    wide, high = _numbers(value, ("width", "height"), size_px)
    if not turn:
        return _rounded((x, y, x + wide, y + high))
    cos, sin = math.cos(angle), math.sin(angle)
    corners = ((0.0, 0.0), (wide, 0.0), (0.0, high), (wide, high))
    xs = [x + dx * cos - dy * sin for dx, dy in corners]
    ys = [y + dx * sin + dy * cos for dx, dy in corners]
    reading.notes[ROTATED] += 1
    return inside(_rounded(bounds(xs, ys)), size_px, reading)


def _numbers(value: Record, keys: tuple[str, ...], whole: Sequence[int]) -> list[float]:
    """Returns some percentages as parts of some wholes."""
    for key in keys:
        if not is_plain(value.get(key)):
            reason = f"its {key} is {reprlib.repr(value.get(key))}, not a plain number"
            raise DataError(reason, kind="number-malformed")
    return [value[key] * side / 100 for key, side in zip(keys, whole, strict=True)]


def _rounded(box: Box) -> Box:
    x0, y0, x1, y1 = (round(float(corner), _DECIMALS) for corner in box)
    return x0, y0, x1, y1
