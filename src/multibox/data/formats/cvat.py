"""Reads CVAT's XML 1.1, of images and of videos.

An image is in the split that its attribute `subset` names, or the name of the file, or a folder in
the image's name. Objects are boxes, and outlines, masks and ellipses, of which the box around them
is used. Frames of a video must be images called `frame_000123`, as CVAT exports them.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from multibox.data.dataset import Note, Object, Scene
from multibox.data.formats.outlines import (
    OUTLINED,
    ROTATED,
    Box,
    bounds,
    ellipse_bounds,
    rotated_bounds,
)
from multibox.data.formats.tree import UNSPLIT, FileTree, image_parts
from multibox.data.formats.voc_files import UNANNOTATED
from multibox.data.formats.xml_files import (
    first_tags,
    folders_of_xml,
    number_in,
    parse_xml,
)
from multibox.data.reading import Reading
from multibox.errors import DataError

_ROOT, _CHILDREN = "annotations", ("version", "meta", "image", "track")
_MAX_XML_BYTES = 1 << 28
_OUTLINES = ("polygon", "polyline", "mask", "ellipse")
_WITHOUT_BOX = ("points", "cuboid", "skeleton", "tag")
_NO_BOX = Note("shape-without-box", "points, cuboids, skeletons and tags were left out")
_WHOLE = re.compile(r"[0-9]{1,9}")
_FRAME = re.compile(r"frame_([0-9]{6,9})")
_TRUE = ("1", "true", "yes")


class _Image(NamedTuple):
    """An annotated image or frame.

    Attributes:
        file: The annotation file.
        position: Its place in the file.
        name: The name of its file.
        beside: A path with the folders that the image should share.
        size_px: Width and height as written, or zeros.
        shapes: Position, class and element of each object.
        error: What is wrong with the whole file, or None.
    """

    file: Path
    position: str | None
    name: str
    beside: Path
    size_px: tuple[str, str]
    shapes: list[tuple[str, str, Element]]
    error: DataError | None = None


class Source(NamedTuple):
    """The annotations of a split.

    Attributes:
        images: Its images.
        labels: The names of the classes, in CVAT's order.
        stems: The names of all images of all splits, without suffix.
    """

    images: list[_Image]
    labels: dict[str, None]
    stems: set[str]


def find_splits(tree: FileTree) -> dict[str, Source]:
    """Returns the annotated images of each split: none if no file is in CVAT's format."""
    splits: dict[str, Source] = {}
    labels, stems = dict[str, None](), set[str]()
    for folder in folders_of_xml(tree, _ROOT):
        for file in folder:
            tags = first_tags(file)
            if tags[:1] != (_ROOT,) or not set(tags[1:]) <= {*_CHILDREN}:
                continue
            for split, image in _images_in(file, tree, labels):
                splits.setdefault(split, Source([], labels, stems)).images.append(image)
                stems.update(Path(part).stem for part in image_parts(image.name)[-1:])
    return splits


def _images_in(file: Path, tree: FileTree, labels: dict[str, None]) -> Iterator[tuple[str, _Image]]:
    """Yields the split of each image or frame of a file, and the image."""
    # Here the file's own name counts, such as train.xml.
    own_split = tree.split_of(file.with_suffix(""))
    nothing = _Image(file, None, "", file, ("", ""), [])
    try:
        root = parse_xml(file, root=_ROOT, limit=_MAX_XML_BYTES)
        frames = list(_frames(root, file, tree))
    except DataError as error:
        yield own_split, nothing._replace(error=error)
        return
    for label in (item for meta in root.findall("meta") for item in meta.iter("label")):
        labels.setdefault((label.findtext("name") or "").strip())
    count = 0
    for count, element in enumerate(root.findall("image"), start=1):
        name = element.get("name", "")
        position = f"image {count} ({name[:200]!r})"
        shapes = [
            (f"{position}, {shape.tag} {place}", shape.get("label", ""), shape)
            for place, shape in enumerate(element, start=1)
        ]
        size = element.get("width", ""), element.get("height", "")
        image = _Image(file, position, name, file, size, shapes)
        yield _placed(image, (element.get("subset") or "").strip(), own_split, tree)
    for subset, image in frames:
        yield _placed(image, subset, own_split, tree)
    if not count and not frames:
        empty = DataError(
            "lists no images", kind="empty-split", file=file, remedy="Choose another file"
        )
        yield own_split, nothing._replace(error=empty)


def _placed(image: _Image, subset: str, own_split: str, tree: FileTree) -> tuple[str, _Image]:
    """Returns the split of an image, and the image with its path."""
    if subset:
        # Images of other splits may have the same name.
        beside = image.file.parent / subset.replace("/", "_") / image.file.name
        return subset, image._replace(beside=beside)
    if own_split != UNSPLIT:
        return own_split, image._replace(beside=image.file.with_suffix(""))
    try:
        return tree.split_of(tree.find_image(image.name, beside=image.file, required=True)), image
    except DataError:
        return tree.split_of(tree.root.joinpath(*image_parts(image.name)[:-1], "x.xml")), image


def _frames(root: Element, file: Path, tree: FileTree) -> Iterator[tuple[str, _Image]]:
    """Yields the subset and the annotations of each frame of a video.

    These are the frames in tracks, and other frames of the task that have an image.

    Raises:
        DataError: A frame has no number, or there are several videos.
    """
    tracks = root.findall("track")
    if len({track.get("task_id") for track in tracks}) > 1:
        raise DataError(
            "has tracks of several videos, so the frames cannot be told apart",
            kind="image-ambiguous",
            file=file,
            remedy="Export each task of the project by itself",
        )
    frames = defaultdict[int, list[tuple[str, str, Element]]](list)
    for place, track in enumerate(tracks, start=1):
        for shape in track:
            number = shape.get("frame", "")
            position = f"track {place}, frame {number[:20]}"
            if not _WHOLE.fullmatch(number):
                raise DataError(
                    f"its frame is {number[:40]!r}, not a whole number",
                    kind="number-malformed",
                    file=file,
                    position=position,
                )
            shapes = frames[int(number)]
            if shape.get("outside") != "1":
                shapes.append((position, track.get("label", ""), shape))
    if tracks:
        count = _frame_count(root)
        for named in (_FRAME.fullmatch(path.stem) for path in tree.images):
            if named and int(named[1]) < count:
                frames.setdefault(int(named[1]), [])
    size = next(root.iter("original_size"), None)
    written = ("", "") if size is None else (size.findtext("width"), size.findtext("height"))
    subset = next((track.get("subset") or "" for track in tracks), "").strip()
    for frame, shapes in sorted(frames.items()):
        name = f"frame_{frame:06d}"
        width, height = written
        position = f"frame {frame}"
        yield subset, _Image(file, position, name, file, (width or "", height or ""), shapes)


def _frame_count(root: Element) -> int:
    """Returns the number of the first frame after the video, or 0 if the file does not tell."""
    size = (root.findtext("meta/task/size") or "").strip()
    last = (root.findtext("meta/task/stop_frame") or "").strip()
    if _WHOLE.fullmatch(last):
        return int(last) + 1
    return int(size) if _WHOLE.fullmatch(size) else 0


def read_split(source: Source, tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    for label in filter(None, source.labels):
        reading.order.setdefault(label, len(reading.order))
    scenes, used = list[Scene](), list[Path]()
    for image in source.images:
        if image.error is not None:
            raise image.error
        try:
            path = tree.find_image(
                image.name, beside=image.beside, required=reading.images == "check"
            )
            used.append(path)
            reading.list_once(str(path), f"{image.file}, {image.position}")
            declared = _side(image.size_px[0], "width"), _side(image.size_px[1], "height")
            size_px = reading.frame(declared, path)
        except DataError as error:
            reading.add_fault(error, image.file, image.position)
            continue
        objects = list(_objects(image, size_px, reading))
        scenes.append(Scene(str(tree.relative(path)), path, size_px, objects))
    reading.notes[UNANNOTATED] += tree.count_others(used, source.stems)
    return scenes


def _objects(image: _Image, size_px: tuple[int, int], reading: Reading) -> Iterator[Object]:
    for position, label, shape in image.shapes:
        if shape.tag in _WITHOUT_BOX:
            reading.notes[_NO_BOX] += 1
        if shape.tag not in (*_OUTLINES, "box"):
            continue
        try:
            if not label.strip():
                raise DataError("its label is empty", kind="name-empty")
            item = Object(label.strip(), _box_px(shape), _is_difficult(shape))
            yield reading.fitted(item, size_px)
        except DataError as error:
            reading.add_fault(error, image.file, position)
            continue
        if shape.tag != "box":
            reading.notes[OUTLINED] += 1
        elif _angle(shape):
            reading.notes[ROTATED] += 1


def _box_px(shape: Element) -> Box:
    """Returns the corners of the upright box around a shape."""
    if shape.tag == "mask":
        left, top, width, height = (_number(shape, x) for x in ("left", "top", "width", "height"))
        return left, top, left + width, top + height
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
        return ellipse_bounds((x, y), (rx, ry), _angle(shape))
    if shape.tag != "box":
        points = [point.split(",") for point in shape.get("points", "").split(";") if point.strip()]
        if any(len(point) != 2 for point in points):
            raise DataError("its points are not pairs of numbers", kind="outline-malformed")
        xs, ys = ([number_in(point[axis], "points") for point in points] for axis in (0, 1))
        return bounds(xs, ys)
    left, top, right, bottom = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    angle = _angle(shape)
    if not angle:
        return left, top, right, bottom
    centre = (left + right) / 2, (top + bottom) / 2
    return rotated_bounds(centre, (right - left, bottom - top), angle)


def _angle(shape: Element) -> float:
    """Returns the rotation in radians."""
    return math.radians(number_in(shape.get("rotation") or "0", "rotation"))


def _is_difficult(shape: Element) -> bool:
    """Whether an attribute of the annotator's marks the object as difficult."""
    return any(
        item.get("name", "").lower() == "difficult" and (item.text or "").strip().lower() in _TRUE
        for item in shape.findall("attribute")
    )


def _number(shape: Element, key: str) -> float:
    text = shape.get(key)
    if text is None:
        raise DataError(f"has no {key}", kind="field-missing")
    return number_in(text, key)


def _side(text: str, name: str) -> int:
    """Returns a width or height, or 0 if it is missing."""
    return int(number_in(text, name)) if text.strip() else 0
