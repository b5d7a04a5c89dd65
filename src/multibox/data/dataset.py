"""What a dataset is once it has been read: annotated images, class names, and what was left out.

Any reader of a format ends in these types, and nothing else in the package knows formats.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from multibox.errors import DataError, one_line

_LISTED_FAULTS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """An image and its objects, in the order that ties in matching are broken by.

    Attributes:
        image_id: The image's name, unique in its dataset.
        image_path: Where its pixels are; not opened before they are needed.
        width_px: Width of the stored pixels.
        height_px: Height of the stored pixels.
        boxes_px: Corners (xmin, ymin, xmax, ymax) as they are written in the file: VOC counts
            pixels from 1, COCO from 0, and neither 1 is subtracted nor added
            (`io.cpp:321-352, 421-460`).
        labels: 0..C-1.
        difficult: Objects, COCO's crowds among them, that do not count in the average precision;
            whether they are trained on is the configuration's choice.
        areas_px2: Areas in squared pixels, where the file states them: COCO's, which are those of
            the masks. None where it states none.
    """

    image_id: str
    image_path: Path
    width_px: int
    height_px: int
    boxes_px: Float32[np.ndarray, "M 4"]
    labels: Int64[np.ndarray, " M"]
    difficult: Bool[np.ndarray, " M"]
    areas_px2: Float64[np.ndarray, " M"] | None = None

    @property
    def boxes(self) -> Float32[np.ndarray, "M 4"]:
        """The boxes in the unit frame: x / width, y / height in float32 (`io.cpp:321-352`)."""
        frame = (self.width_px, self.height_px, self.width_px, self.height_px)
        return self.boxes_px / np.array(frame, np.float32)


MIN_SIDE_PX = 0.01
"""Of a box: of a smaller one nothing is left in the unit frame's float32."""


class Object(NamedTuple):
    """An object as a reader finds it: class name, corners in pixels, area in squared pixels.

    The area is None if the file does not state it.
    """

    name: str
    box_px: tuple[float, float, float, float]
    difficult: bool
    area_px2: float | None = None


class Scene(NamedTuple):
    """An image as a reader finds it, before all class names are known."""

    image_id: str
    path: Path
    size_px: tuple[int, int]
    objects: list[Object]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that cannot be used. As text it is a single line, whatever names it contains.

    Attributes:
        kind: The kind of its error, one of `data/check/findings.py`.
        file: The file concerned.
        position: The place inside it: `object 3 ('RBC')`, `line 12`. None for the whole file.
        reason: What is wrong, as a clause without a final full stop.
    """

    kind: str
    file: Path
    position: str | None
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.position}" if self.position else f"{self.file}"
        return one_line(f"{where}: {self.reason}")


class Note(NamedTuple):
    """Something that was not read literally.

    Attributes:
        kind: One of `data/check/findings.py`.
        text: What was done, as a clause without a final full stop.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Dataset:
    """The annotated images of one or more splits.

    Attributes:
        name: The splits that were read, e.g. `2007:trainval+2012:trainval`.
        classes: Names, in the order of the labels.
        annotations: One per image, in the order of the split files.
        faults: What was left out because it could not be used.
        notes: What was not read literally.
    """

    name: str
    classes: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    faults: tuple[Fault, ...] = ()
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.annotations)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that tell whether the annotations are still the same.

        They cover classes, order, ids, sizes, boxes, labels and difficult, and neither the
        folder's place nor the pixels.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for item in self.annotations:
            head = (item.image_id, item.width_px, item.height_px, len(item.labels))
            digest.update(json.dumps(head).encode())
            digest.update(item.boxes_px.astype("<f4").tobytes())
            digest.update(item.labels.astype("<i8").tobytes())
            digest.update(item.difficult.tobytes())
        return digest.hexdigest()[:16]

    @property
    def objects_per_class(self) -> dict[str, int]:
        """How many objects each class has, difficult ones included, in the order of classes."""
        labels = [item.labels for item in self.annotations]
        counts = np.bincount(np.concatenate([*labels, np.zeros(0, np.int64)]))
        padded = [*counts.tolist(), *[0] * len(self.classes)]
        return dict(zip(self.classes, padded, strict=False))


def fit_box(
    box_px: tuple[float, float, float, float], size_px: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Returns a box's corners, clipped where they leave the image by at most a pixel.

    Raises:
        DataError: If the box leaves the image by more, or is empty; the reason alone is given.
    """
    left, top, right, bottom = box_px
    width, height = map(float, size_px)
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1:
        raise DataError(
            f"its box {_written(box_px)} leaves the image of {width:g} x {height:g}",
            kind="box-outside",
        )
    fitted = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    x0, y0, x1, y1 = np.array(fitted, np.float32)
    if min(x1 - x0, y1 - y0) < MIN_SIDE_PX:
        raise DataError(f"its box {_written(box_px)} is empty", kind="box-empty")
    return fitted


def _written(box_px: tuple[float, ...]) -> str:
    return f"({', '.join(f'{corner:g}' for corner in box_px)})"


def annotate(scene: Scene, classes: tuple[str, ...]) -> Annotation:
    """Returns the scene with labels for names.

    The objects are grouped by class in order of first appearance, as Caffe stores them: ties
    in matching go to the earlier object (`io.cpp:295-316`).
    """
    appearance = {item.name: -place for place, item in enumerate(reversed(scene.objects))}
    objects = sorted(scene.objects, key=lambda item: appearance[item.name])
    return Annotation(
        scene.image_id,
        scene.path,
        *scene.size_px,
        boxes_px=np.array([item.box_px for item in objects], np.float32).reshape(-1, 4),
        labels=np.array([classes.index(item.name) for item in objects], np.int64),
        difficult=np.array([item.difficult for item in objects], np.bool_),
        areas_px2=_areas_px2(objects),
    )


def _areas_px2(objects: Sequence[Object]) -> Float64[np.ndarray, " M"] | None:
    """Returns stated areas, with those of boxes where one is missing; None if all are missing."""
    if all(item.area_px2 is None for item in objects):
        return None
    sides = ((x1 - x0, y1 - y0) for _, (x0, y0, x1, y1), _, _ in objects)
    return np.array(
        [
            width * height if item.area_px2 is None else item.area_px2
            for item, (width, height) in zip(objects, sides, strict=True)
        ]
    )


def require_objects(dataset: Dataset) -> None:
    """Refuses a dataset from which some class, or any class at all, cannot be learned.

    Raises:
        DataError: If a class has no object, or there is no class.
    """
    missing = [name for name, count in dataset.objects_per_class.items() if count == 0]
    if dataset.classes and not missing:
        return
    lacking = ", ".join(map(repr, missing)) or "any class"
    raise DataError(
        f"no image of {dataset.name} shows an object of {lacking}",
        kind="nothing-to-learn",
        remedy="Name the classes as the annotations do, or add images that show them",
    )


def refuse_faults(faults: Sequence[Fault], root: Path) -> None:
    """Raises all faults of a dataset as one error, or nothing where there are none.

    Raises:
        DataError: If there is a fault; the message has a line for each of the first twenty.
    """
    if not faults:
        return
    lines = [f"\n  {fault}" for fault in faults[:_LISTED_FAULTS]]
    if len(faults) > _LISTED_FAULTS:
        lines.append(f"\n  and {len(faults) - _LISTED_FAULTS} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise DataError(
        f"the dataset has {count}{''.join(lines)}",
        kind="faults",
        file=root,
        remedy="\nCorrect the files, or leave these objects and images out with --on-bad skip",
    )
