"""How many objects are found, by their size, their shape and their position in the image."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from multibox.evaluation.voc import ClassObjects, Verdicts

COCO_SIDES_PX = (0.0, 32.0, 96.0, np.inf)
"""Limits of small, medium and large objects: the square roots of COCO's areas."""

SIDES_PX = (0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, np.inf)
ASPECTS = (0.0, 1 / 4, 1 / 2, 3 / 4, 4 / 3, 2.0, 4.0, np.inf)
GRID = 5
"""Number of rows and of columns of positions."""


class Groups(NamedTuple):
    """The objects in B groups by a number.

    Attributes:
        limits: B + 1 limits, ascending. A group includes its lower limit.
        found: int64 (C, B), number of objects of each class that are found.
        missed: int64 (C, B), number of objects of each class that are not.
    """

    limits: tuple[float, ...]
    found: Int64[np.ndarray, "C B"]
    missed: Int64[np.ndarray, "C B"]


class FoundObjects(NamedTuple):
    """The objects that are found and those that are not. Difficult objects are left out.

    Attributes:
        coco_sizes: By the square root of the area in pixels: small, medium and large.
        sizes: By the square root of the area in pixels, in more groups.
        aspects: By the width divided by the height.
        found_at: int64 (C, 5, 5), number of objects of each class that are found, by the row and
            the column of the centre in the image.
        missed_at: int64 (C, 5, 5), number of objects of each class that are not found.
    """

    coco_sizes: Groups
    sizes: Groups
    aspects: Groups
    found_at: Int64[np.ndarray, "C 5 5"]
    missed_at: Int64[np.ndarray, "C 5 5"]


def group_objects(
    verdicts: Mapping[str, Verdicts],
    objects: Mapping[str, ClassObjects],
    sizes_px: Int64[np.ndarray, "I 2"],
    *,
    score_threshold: float = 0.0,
) -> FoundObjects:
    """Returns the numbers of objects that are found and that are not, in groups.

    An object is found if a detection with at least the threshold's score is right by the rules of
    VOC. Areas are as annotated, or else those of the boxes, without VOC's additional pixel.

    Args:
        verdicts: The verdicts on the detections of each class, from `voc.judge_classes`.
        objects: The objects of the same C classes, at least one class.
        sizes_px: int64 (I, 2), height and width of each image in pixels.
        score_threshold: Lowest score of the detections, 0..1.
    """
    table = measure_objects(verdicts, objects, sizes_px, score_threshold=score_threshold)
    found_at, missed_at = table.tally(table.cells, GRID * GRID)
    grid = (len(objects), GRID, GRID)
    return FoundObjects(
        table.group(table.sides, COCO_SIDES_PX),
        table.group(table.sides, SIDES_PX),
        table.group(table.aspects, ASPECTS),
        found_at.reshape(grid),
        missed_at.reshape(grid),
    )


class MeasuredObjects(NamedTuple):
    """The objects of all classes that are not difficult.

    Attributes:
        num_classes: Number of classes C.
        labels: int64 (G,), the class.
        places: int64 (G,), the index in the `ClassObjects` of the class.
        found: bool (G,), whether it is found.
        sides: float64 (G,), the square root of its area in pixels.
        aspects: float64 (G,), its width divided by its height.
        cells: int64 (G,), row * GRID + column of its centre in the image.
    """

    num_classes: int
    labels: Int64[np.ndarray, " G"]
    places: Int64[np.ndarray, " G"]
    found: Bool[np.ndarray, " G"]
    sides: Float64[np.ndarray, " G"]
    aspects: Float64[np.ndarray, " G"]
    cells: Int64[np.ndarray, " G"]

    def group(self, values: Float64[np.ndarray, " G"], limits: tuple[float, ...]) -> Groups:
        """Returns the numbers of found and missed objects between limits."""
        return Groups(limits, *self.tally(np.digitize(values, limits[1:-1]), len(limits) - 1))

    def tally(
        self, groups: Int64[np.ndarray, " G"], number: int
    ) -> tuple[Int64[np.ndarray, "C B"], Int64[np.ndarray, "C B"]]:
        """Returns how many objects of each class and group are found, and how many are not."""
        cells = self.labels * number + groups
        found, missed = (
            np.bincount(cells[chosen], minlength=self.num_classes * number)
            for chosen in (self.found, ~self.found)
        )
        return found.reshape(-1, number), missed.reshape(-1, number)


def measure_objects(
    verdicts: Mapping[str, Verdicts],
    objects: Mapping[str, ClassObjects],
    sizes_px: Int64[np.ndarray, "I 2"],
    *,
    score_threshold: float,
) -> MeasuredObjects:
    """Returns whether each object is found, with its size, shape and position.

    The arguments are those of `group_objects`.
    """
    columns = []
    for label, (name, of_class) in enumerate(objects.items()):
        is_found = np.zeros(len(of_class.images), dtype=bool)
        judged = verdicts[name]
        is_found[judged.hit[judged.right & (judged.scores >= score_threshold)]] = True
        places = np.flatnonzero(~of_class.difficult)
        boxes_px = of_class.boxes_px[places]
        width, height = (boxes_px[:, 2:] - boxes_px[:, :2]).T
        stated = of_class.areas_px2
        sides = np.sqrt(width * height if stated is None else stated[places])
        aspects = width / np.maximum(height, np.finfo(np.float64).tiny)
        centres = (boxes_px[:, 1::-1] + boxes_px[:, :1:-1]) / 2
        cells = (GRID * centres / sizes_px[of_class.images[places]]).astype(np.int64)
        cells = cells.clip(0, GRID - 1) @ [GRID, 1]
        labels = np.full(len(places), label)
        columns.append((labels, places, is_found[places], sides, aspects, cells))
    return MeasuredObjects(len(objects), *map(np.concatenate, zip(*columns, strict=True)))
