"""Checks of objects and class names that are probably mistakes but can be read."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element

import numpy as np

from multibox.data.check.findings import Finding
from multibox.data.dataset import Annotation, Dataset, Object, fit_box, format_box
from multibox.data.formats.voc_xml import (
    object_elements,
    object_position,
    parse_annotation,
    parse_object,
)
from multibox.errors import DataError

FEW_OBJECTS = 10
"""A class with fewer training objects will hardly be learned."""
SMALL_SIDE_PX = 32
"""An image with a shorter side is reported."""
# Two pixels in an input of 300 pixels, or a quarter of a cell of the finest feature map.
_TINY_SHARE = 2 / 300
# Boxes of at least 8 pixels are unlikely to be within one pixel of each other by chance.
_NEAR_PX, _NEAR_SIDE_PX = 1.0, 8.0
# A name is treated as a misspelling if it has at most a tenth of the objects of the other name.
_RARE = 0.1
_BACKGROUND = {"background", "__background__", "bg", "_background_"}


def check_split(dataset: Dataset) -> list[Finding]:
    """Checks the objects of a split in any layout except VOC."""
    found = []
    for item in dataset.annotations:
        objects = [
            Object(dataset.classes[label], (x0, y0, x1, y1), bool(difficult))
            for label, (x0, y0, x1, y1), difficult in zip(
                item.labels.tolist(), item.boxes_px.tolist(), item.difficult.tolist(), strict=True
            )
        ]
        positions = [f"{item.name!r} {format_box(item.box_px)}" for item in objects]
        found += _check_objects(item, item.image_path, positions, objects)
    return found


def check_xml(item: Annotation, file: Path) -> list[Finding]:
    """Checks a VOC annotation that its reader has accepted."""
    tree = parse_annotation(file)
    found, positions, objects = [], [], []
    without_flag = 0
    for number, element in enumerate(object_elements(tree), start=1):
        try:
            written = parse_object(element)
            fitted = fit_box(written.box_px, (item.width_px, item.height_px))
        except DataError:
            # The reader has reported it.
            continue
        position = object_position(number, element)
        if fitted != written.box_px:
            reason = (
                f"its box {format_box(written.box_px)} leaves the image by up to a pixel and is "
                "clipped"
            )
            found.append(Finding("box-clipped", file, position, reason))
        without_flag += element.find("difficult") is None
        positions.append(position)
        objects.append(written._replace(box_px=fitted))
    if without_flag:
        reason = f"{without_flag} of {len(objects)} objects have no <difficult>; 0 is assumed"
        found.append(Finding("difficult-missing", file, None, reason))
    return [*found, *_check_head(item, tree, file), *_check_objects(item, file, positions, objects)]


def _check_head(item: Annotation, tree: Element, file: Path) -> list[Finding]:
    found = []
    name = (tree.findtext("filename") or "").strip()
    own_names = (file.stem, item.image_path.name, item.image_path.stem)
    if name and PureWindowsPath(name).name not in own_names and Path(name).stem not in own_names:
        reason = f"its <filename> is {name[:80]!r}, the name of another image"
        found.append(Finding("filename-differs", file, None, reason))
    if tree.find("size") is None and tree.find("imagesize") is None:
        reason = "has no <size>; the image's size is used"
        found.append(Finding("size-missing", file, None, reason))
    return found


def _check_objects(
    item: Annotation, file: Path, positions: Sequence[str], objects: Sequence[Object]
) -> list[Finding]:
    """Returns findings for tiny boxes and for boxes that repeat an earlier one."""
    if not objects:
        return []
    boxes = np.array([thing.box_px for thing in objects])
    found = []
    sides = boxes[:, 2:] - boxes[:, :2]
    tiny = (sides < _TINY_SHARE * np.array((item.width_px, item.height_px))).any(axis=1)
    for place in np.flatnonzero(tiny).tolist():
        corners = format_box(objects[place].box_px)
        reason = f"its box {corners} is less than 2 pixels wide or high in an input of 300 pixels"
        found.append(Finding("tiny-box", file, positions[place], reason))
    large = sides.min(axis=1) >= _NEAR_SIDE_PX
    # One row at a time, because a matrix of thousands of objects would fill the memory.
    for later in range(1, len(objects)):
        distances = np.abs(boxes[:later] - boxes[later]).max(axis=1)
        near = (distances == 0) | ((distances <= _NEAR_PX) & large[later] & large[:later])
        for earlier in np.flatnonzero(near).tolist():
            same_name = objects[later].name == objects[earlier].name
            if distances[earlier] and not same_name:
                continue
            kind, extent = "duplicate-object" if same_name else "box-of-two-classes", "as"
            if distances[earlier]:
                kind, extent = "nearly-duplicate-object", "to within a pixel as"
            corners = format_box(objects[later].box_px)
            reason = f"its box {corners} is the same {extent} that of {positions[earlier]}"
            found.append(Finding(kind, file, positions[later], reason))
            break
    return found


def check_names(counts: Counter[str], root: Path) -> list[Finding]:
    """Returns findings for class names that mean the background or are probably misspelt."""
    found = []
    for name, count in counts.items():
        if name.lower() in _BACKGROUND:
            reason = "has objects, but its name means the background"
            found.append(Finding("class-background", root, f"class {name!r}", reason))
        for other, others in counts.items():
            # Names that differ in digits, or have no letters (+ and -), are meant to differ.
            if (
                (others, other) <= (count, name)
                or not _plain(name)
                or _differ_in_digits(name, other)
            ):
                continue
            alike = _plain(name) == _plain(other)
            rare = count <= _RARE * others and max(len(name), len(other)) >= 4
            if alike or (rare and _one_letter_apart(_plain(name), _plain(other))):
                reason = f"has {count} objects; {other!r}, a similar name, has {others}"
                found.append(Finding("class-similar", root, f"class {name!r}", reason))
    return found


def _plain(name: str) -> str:
    """Returns a name in lower case, with letters and digits only."""
    return "".join(char for char in name.casefold() if char.isalnum())


def _differ_in_digits(a: str, b: str) -> bool:
    """Whether two names have different digits."""
    return list(filter(str.isdigit, a)) != list(filter(str.isdigit, b))


def _one_letter_apart(a: str, b: str) -> bool:
    """Whether two names differ by one letter changed, added or left out, or two swapped."""
    if len(a) > len(b):
        a, b = b, a
    if len(b) - len(a) > 1:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) < len(b):
        return a[start:] == b[start + 1 :]
    swapped = (
        a[start : start + 2] == b[start : start + 2][::-1] and a[start + 2 :] == b[start + 2 :]
    )
    return a != b and (a[start + 1 :] == b[start + 1 :] or swapped)


def count_objects(datasets: Iterable[Dataset]) -> Counter[str]:
    """Returns the number of objects per class in some splits. Each image is counted once."""
    images = {}
    for dataset in datasets:
        for item in dataset.annotations:
            images[item.image_path] = [dataset.classes[label] for label in item.labels]
    return Counter(name for names in images.values() for name in names)
