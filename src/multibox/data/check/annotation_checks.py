"""What the readers accept of a dataset, and a person would want to know nevertheless."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from multibox.data.check.findings import Finding
from multibox.data.dataset import Annotation, Dataset, Object, fit_box
from multibox.data.formats.voc import object_position, parse_annotation, parse_object
from multibox.errors import DataError

FEW_OBJECTS = 10
"""A class with fewer in training is hardly learned."""
SMALL_SIDE_PX = 32
"""Of an image."""
# A side of less than two pixels in an input of 300: less than a quarter of the finest cell.
_TINY_SHARE = 2 / 300
# Of boxes that are too large to lie that close by chance.
_NEAR_PX, _NEAR_SIDE_PX = 1.0, 8.0
# A name is another misspelt where it is that much rarer.
_RARE = 0.1
_BACKGROUND = {"background", "__background__", "bg", "_background_"}


def remarks_of_split(dataset: Dataset) -> list[Finding]:
    """Returns what is odd about the objects of a split in any layout but VOC's."""
    found = []
    for item in dataset.annotations:
        objects = [
            Object(dataset.classes[label], (x0, y0, x1, y1), bool(difficult))
            for label, (x0, y0, x1, y1), difficult in zip(
                item.labels.tolist(), item.boxes_px.tolist(), item.difficult.tolist(), strict=True
            )
        ]
        positions = [f"{item.name!r} {_written(item)}" for item in objects]
        found += _of_objects(item, item.image_path, positions, objects)
    return found


def remarks_of_xml(item: Annotation, file: Path) -> list[Finding]:
    """Returns what is odd about an annotation of VOC's that its reader has accepted."""
    tree = parse_annotation(file)
    found, positions, objects = [], [], []
    without_flag = 0
    for number, element in enumerate(tree.findall("object"), start=1):
        try:
            written = parse_object(element)
            fitted = fit_box(written.box_px, (item.width_px, item.height_px))
        except DataError:
            # The reader has said so.
            continue
        position = object_position(number, element)
        if fitted != written.box_px:
            reason = (
                f"its box {_written(written)} leaves the image by up to a pixel, and is clipped"
            )
            found.append(Finding("box-clipped", file, position, reason))
        without_flag += element.find("difficult") is None
        positions.append(position)
        objects.append(written._replace(box_px=fitted))
    if without_flag:
        reason = f"{without_flag} of {len(objects)} objects have no <difficult>, and count as 0"
        found.append(Finding("difficult-missing", file, None, reason))
    return [*found, *_of_head(tree, file), *_of_objects(item, file, positions, objects)]


def _of_head(tree: Element, file: Path) -> list[Finding]:
    found = []
    name = (tree.findtext("filename") or "").strip()
    if name and name != file.stem and Path(name).stem != file.stem:
        reason = f"its <filename> is {name[:80]!r}, which is another image's"
        found.append(Finding("filename-differs", file, None, reason))
    if tree.find("size") is None:
        found.append(Finding("size-missing", file, None, "has no <size>; the image's is taken"))
    return found


def _of_objects(
    item: Annotation, file: Path, positions: Sequence[str], objects: Sequence[Object]
) -> list[Finding]:
    """Returns tiny boxes, and those that repeat an earlier one."""
    if not objects:
        return []
    boxes = np.array([thing.box_px for thing in objects])
    found = []
    sides = boxes[:, 2:] - boxes[:, :2]
    tiny = (sides < _TINY_SHARE * np.array((item.width_px, item.height_px))).any(axis=1)
    for place in np.flatnonzero(tiny).tolist():
        reason = f"its box {_written(objects[place])} is less than 2 pixels of 300 wide or high"
        found.append(Finding("tiny-box", file, positions[place], reason))
    large = sides.min(axis=1) >= _NEAR_SIDE_PX
    # Row by row, and the first that fits: thousands of objects must not fill the memory.
    for later in range(1, len(objects)):
        distances = np.abs(boxes[:later] - boxes[later]).max(axis=1)
        near = (distances == 0) | ((distances <= _NEAR_PX) & large[later] & large[:later])
        for earlier in np.flatnonzero(near).tolist():
            same_name = objects[later].name == objects[earlier].name
            if distances[earlier] and not same_name:
                continue
            kind, extent = "duplicate-object" if same_name else "box-of-two-classes", ""
            if distances[earlier]:
                kind, extent = "nearly-duplicate-object", " to within a pixel"
            reason = f"its box {_written(objects[later])} is that of {positions[earlier]}{extent}"
            found.append(Finding(kind, file, positions[later], reason))
            break
    return found


def _written(thing: Object) -> str:
    return f"({', '.join(f'{corner:g}' for corner in thing.box_px)})"


def remarks_of_names(counts: Counter[str], root: Path) -> list[Finding]:
    """Returns names that mean the background, or are probably another one misspelt."""
    found = []
    for name, count in counts.items():
        if name.lower() in _BACKGROUND:
            found.append(Finding("class-background", root, f"class {name!r}", "has objects"))
        for other, others in counts.items():
            # Whoever numbers classes, or names them + and -, means them.
            if (
                (others, other) <= (count, name)
                or not _plain(name)
                or _differ_in_digits(name, other)
            ):
                continue
            alike = _plain(name) == _plain(other)
            rare = count <= _RARE * others and max(len(name), len(other)) >= 4
            if alike or (rare and _one_letter_apart(_plain(name), _plain(other))):
                reason = f"with {count} objects is nearly called {other!r}, which has {others}"
                found.append(Finding("class-similar", root, f"class {name!r}", reason))
    return found


def _plain(name: str) -> str:
    """Returns a name without what people write differently."""
    return "".join(char for char in name.casefold() if char.isalnum())


def _differ_in_digits(a: str, b: str) -> bool:
    """Whether two names have different digits."""
    return list(filter(str.isdigit, a)) != list(filter(str.isdigit, b))


def _one_letter_apart(a: str, b: str) -> bool:
    """Whether one letter was changed, added or left out, or two neighbours swapped."""
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
    """Returns the objects per class of all images of some splits, each image counted once."""
    images = {}
    for dataset in datasets:
        for item in dataset.annotations:
            images[item.image_path] = [dataset.classes[label] for label in item.labels]
    return Counter(name for names in images.values() for name in names)
