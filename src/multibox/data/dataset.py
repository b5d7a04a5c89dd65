"""A dataset in memory: annotated images, class names, and a list of what was left out.

The readers of all formats return these types, so training and evaluation do not depend on the
format.
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
    """An image and its objects. When two objects tie in matching, the earlier one wins.

    Attributes:
        image_id: The image's name, unique in its dataset.
        image_path: The image file. It is not opened until its pixels are needed.
        width_px: Width of the stored pixels.
        height_px: Height of the stored pixels.
        boxes_px: Corners (xmin, ymin, xmax, ymax) as written in the file. VOC counts pixels from
            1 and COCO from 0; the numbers are not shifted (`io.cpp:321-352, 421-460`).
        labels: Class indices in 0..C-1.
        difficult: Marks objects that do not count in the average precision, such as COCO's crowds.
            The configuration decides whether they are trained on.
        areas_px2: Areas in squared pixels. COCO states the areas of the masks. None if the file
            states no area.
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
        """The boxes as fractions of the image: x / width, y / height in float32.

        See `io.cpp:321-352`.
        """
        frame = (self.width_px, self.height_px, self.width_px, self.height_px)
        return self.boxes_px / np.array(frame, np.float32)


MIN_SIDE_PX = 0.01
"""The minimum side of a box. A smaller one may vanish when float32 rounds its fractions."""
_TINY_IMAGE_PX = 8


class Object(NamedTuple):
    """An object as written in a file: class name, corners in pixels, area in squared pixels.

    The area is None if the file does not state it.
    """

    name: str
    box_px: tuple[float, float, float, float]
    difficult: bool
    area_px2: float | None = None


class Scene(NamedTuple):
    """An image as written in a file, before all class names are known."""

    image_id: str
    path: Path
    size_px: tuple[int, int]
    objects: list[Object]


@dataclass(frozen=True, slots=True)
class Fault:
    """An image or object that cannot be used. `str(fault)` is always a single line.

    Attributes:
        kind: The kind of the error, one of `data/check/findings.py`.
        file: The file concerned.
        position: The place in the file: `object 3 ('RBC')`, `line 12`. None for the whole file.
        reason: What is wrong, as a clause without a full stop.
    """

    kind: str
    file: Path
    position: str | None
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.position}" if self.position else f"{self.file}"
        return one_line(f"{where}: {self.reason}")


class Note(NamedTuple):
    """A deviation of the dataset in memory from what the files say.

    Attributes:
        kind: One of `data/check/findings.py`.
        text: What was done, as a clause without a full stop.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Dataset:
    """The annotated images of one or more splits.

    Attributes:
        name: The splits that were read, for example `2007:trainval+2012:trainval`.
        classes: Class names. The label of a class is its index here.
        annotations: One per image, in the order of the split files.
        faults: The images and objects that were left out because they cannot be used.
        notes: What was read differently from what the files say.
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
        """A hash of the annotations, as 16 hexadecimal digits.

        It covers the classes, the order of the images, and their ids, sizes, boxes, labels and
        difficult flags. It covers neither the folder's path nor the pixels.
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
        """The number of objects of each class, including difficult ones, in class order."""
        labels = [item.labels for item in self.annotations]
        counts = np.bincount(np.concatenate([*labels, np.zeros(0, np.int64)]))
        padded = [*counts.tolist(), *[0] * len(self.classes)]
        return dict(zip(self.classes, padded, strict=False))


def fit_box(
    box_px: tuple[float, float, float, float], size_px: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Returns a box's corners, clipped if they leave the image by at most one pixel.

    Raises:
        DataError: The box leaves the image by more, is empty, or lies within the first pixel, as if
            its corners were fractions of the image. The error names no file.
    """
    left, top, right, bottom = box_px
    width, height = map(float, size_px)
    if 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and min(size_px) > _TINY_IMAGE_PX:
        reason = f"its box {format_box(box_px)} looks like fractions of the image, not like pixels"
        raise DataError(reason, kind="box-fractions")
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1:
        raise DataError(
            f"its box {format_box(box_px)} leaves the image of {width:g} x {height:g}",
            kind="box-outside",
        )
    fitted = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    x0, y0, x1, y1 = np.array(fitted, np.float32)
    if min(x1 - x0, y1 - y0) < MIN_SIDE_PX:
        raise DataError(f"its box {format_box(box_px)} is empty", kind="box-empty")
    return fitted


def format_box(box_px: tuple[float, ...]) -> str:
    """Returns a box's corners as text."""
    return f"({', '.join(f'{corner:g}' for corner in box_px)})"


def annotate(scene: Scene, classes: tuple[str, ...]) -> Annotation:
    """Returns the annotation of an image, with labels instead of class names.

    The objects are grouped by class in order of first appearance, as Caffe stores them. The order
    matters because ties in matching go to the earlier object (`io.cpp:295-316`).
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
    """Returns the objects' areas: a missing one is the box's area. None if all are missing."""
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
    """Checks that a dataset has an object of every class.

    Raises:
        DataError: A class has no object, or there is no class.
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


def refuse_faults(faults: Sequence[Fault], root: Path, *, some_left: bool) -> None:
    """Raises all faults of a dataset as one error. It proposes to skip them if that leaves objects.

    Raises:
        DataError: There is a fault. The message has a line for each of the first twenty.
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
        remedy="\nCorrect the files"
        + ", or use --on-bad skip to leave out these objects and images" * some_left,
    )
