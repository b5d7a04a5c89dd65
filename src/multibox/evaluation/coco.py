"""COCO's average precision over ten overlap thresholds, in NumPy for all images of a class at once.

It takes the same detections and objects as `voc.py`. Difficult objects become crowds, the only
objects that COCO ignores (`cocoeval.py` overwrites `ignore` with `iscrowd`). As in VOC, any number
of detections may hit a crowd without counting. Unlike in VOC, the overlap with a crowd is the share
of the detection that lies in it.

pycocotools matches each image, threshold and range of areas separately (`COCOeval.evaluateImg`).
This module matches the best detections of all images for all 40 settings at once, then the second
best, and so on. It considers only detections that overlap an object by half.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from multibox.evaluation.pairs import of_the_same_image, place_among_equals
from multibox.evaluation.voc import (
    NO_DETECTIONS,
    ClassDetections,
    ClassObjects,
    require_ground_truth,
)

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)
# Smallest and largest area of all, small, medium and large objects (`Params.setDetParams`).
AREAS_PX = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
MAX_DETECTIONS = 100

# The S settings are pairs of an overlap threshold and a range of areas. The range varies faster.
_LEAST = IOU_THRESHOLDS.repeat(len(AREAS_PX))
_RANGE = np.tile(np.arange(len(AREAS_PX)), len(IOU_THRESHOLDS))


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoResult:
    """Mean average precisions over all classes. Each is NaN if there are no such objects."""

    mean: float
    """AP@[.5:.95]."""

    ap50: float
    """At an overlap of 0.5."""

    ap75: float
    """At an overlap of 0.75."""

    small: float
    """AP@[.5:.95] of objects with an area of at most 32 x 32 pixels."""

    medium: float
    """AP@[.5:.95] of objects with an area from 32 x 32 to 96 x 96 pixels."""

    large: float
    """AP@[.5:.95] of objects with an area of at least 96 x 96 pixels."""

    by_class: dict[str, float]
    """AP@[.5:.95] of every class."""


def evaluate_coco(
    detections: Mapping[str, ClassDetections], objects: Mapping[str, ClassObjects]
) -> CocoResult:
    """Returns COCO's average precisions for the best 100 detections per image and class.

    The width of a box is x1 - x0, without VOC's additional pixel.

    Args:
        detections: Detections by class. A class may be absent.
        objects: Objects by class. Arrays are empty for a class without objects.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    require_ground_truth(detections, objects)
    by_class = {
        name: _average_precisions(detections.get(name, NO_DETECTIONS), objects[name])
        for name in objects
    }
    # Axes: class, threshold, range.
    table = np.array([*by_class.values()]).reshape(-1, len(IOU_THRESHOLDS), len(AREAS_PX))
    return CocoResult(
        mean=_mean(table[..., 0]),
        ap50=_mean(table[:, 0, 0]),
        ap75=_mean(table[:, 5, 0]),
        small=_mean(table[..., 1]),
        medium=_mean(table[..., 2]),
        large=_mean(table[..., 3]),
        by_class={name: _mean(row[..., 0]) for name, row in zip(by_class, table, strict=True)},
    )


def _mean(values: Float64[np.ndarray, "*any"]) -> float:
    """Returns the mean of the values that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


class _Boxes(NamedTuple):
    """Boxes in COCO's form: (x, y, width, height). The right side is x + width."""

    low: Float64[np.ndarray, "N 2"]
    size: Float64[np.ndarray, "N 2"]

    @property
    def area(self) -> Float64[np.ndarray, " N"]:
        return np.asarray(self.size.prod(axis=1))


def _coco_boxes(boxes_px: Float64[np.ndarray, "N 4"]) -> _Boxes:
    return _Boxes(boxes_px[:, :2], boxes_px[:, 2:] - boxes_px[:, :2])


def _average_precisions(
    detections: ClassDetections, objects: ClassObjects
) -> Float64[np.ndarray, " S"]:
    """Returns the average precision of a class in every setting (`COCOeval.accumulate`)."""
    truth = _coco_boxes(objects.boxes_px)
    # The area of an object is that of its mask. The area of a detection is that of its box.
    areas = truth.area if objects.areas_px2 is None else objects.areas_px2
    ignored = (objects.difficult | _outside(areas))[_RANGE]
    # Sort by descending score, then by image, then by position.
    order = np.lexsort((detections.images, -detections.scores))
    order = order[place_among_equals(detections.images[order]) < MAX_DETECTIONS]
    images = detections.images[order]
    found = _coco_boxes(detections.boxes_px[order])
    pairs = _pairs(images, found, objects.images, truth, objects.difficult)
    near = np.unique(pairs.detection)
    matched, unjudged = _match(pairs, images, near, ignored, objects.difficult)
    far_off = _outside(found.area)
    # Number of detections without an object up to each detection, by range.
    alone = ~far_off
    alone[:, near] = False
    wrong_alone = alone.cumsum(axis=1)[:, near]
    counts = np.where(matched, ~unjudged, ~far_off[:, near][_RANGE])
    counted = counts.cumsum(axis=1) + wrong_alone[_RANGE]
    right = matched & counts
    return np.array(
        [
            _average_precision(counted[setting][right[setting]], int((~ignored[setting]).sum()))
            for setting in range(len(_LEAST))
        ]
    )


def _outside(area: Float64[np.ndarray, " N"]) -> Bool[np.ndarray, "A N"]:
    """Returns whether areas are outside each range. The limits belong to the range."""
    return np.asarray((area < AREAS_PX[:, :1]) | (area > AREAS_PX[:, 1:]))


def _average_precision(counted: Int64[np.ndarray, " N"], num_objects: int) -> float:
    """Returns the mean of the best precisions at 101 recalls, or NaN without objects.

    Args:
        counted: Number of counted detections up to each right one, by descending score.
        num_objects: Number of objects that are not ignored.
    """
    if not num_objects:
        return math.nan
    right = np.arange(1, len(counted) + 1)
    precision = right / counted
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(right / num_objects, RECALL_THRESHOLDS)
    return float(np.append(envelope, 0.0)[first].mean())


class _Pairs(NamedTuple):
    """The P pairs of a detection and an object of the same image that overlap by half.

    The pairs of a detection are sorted by overlap. A detection is matched to its last free object,
    because pycocotools takes the last of several equal overlaps.
    """

    detection: Int64[np.ndarray, " P"]
    object: Int64[np.ndarray, " P"]
    overlap: Float64[np.ndarray, " P"]


def _pairs(
    images: Int64[np.ndarray, " N"],
    found: _Boxes,
    object_images: Int64[np.ndarray, " G"],
    truth: _Boxes,
    crowd: Bool[np.ndarray, " G"],
) -> _Pairs:
    """Returns the pairs, sorted by detection (`bbIou` in `maskApi.c`)."""
    detection, index = of_the_same_image(images, object_images)
    low = np.maximum(found.low[detection], truth.low[index])
    high = np.minimum((found.low + found.size)[detection], (truth.low + truth.size)[index])
    intersection = (high - low).clip(min=0).prod(axis=1)
    union = np.where(
        crowd[index],
        found.area[detection],
        found.area[detection] + truth.area[index] - intersection,
    )
    overlap = np.divide(intersection, union, out=np.zeros(len(union)), where=intersection > 0)
    near = np.flatnonzero(overlap >= IOU_THRESHOLDS[0])
    near = near[np.lexsort((index[near], overlap[near], detection[near]))]
    return _Pairs(detection[near], index[near], overlap[near])


def _match(
    pairs: _Pairs,
    images: Int64[np.ndarray, " N"],
    near: Int64[np.ndarray, " n"],
    ignored: Bool[np.ndarray, "S G"],
    crowd: Bool[np.ndarray, " G"],
) -> tuple[Bool[np.ndarray, "S n"], Bool[np.ndarray, "S n"]]:
    """Returns whether each detection is matched, and whether it is matched to an ignored object.

    Each detection in turn takes the free object that it overlaps most, and an ignored object only
    if no other is free.

    Args:
        pairs: The pairs, sorted by detection.
        images: The image of each detection, by descending score.
        near: The detections with pairs, ascending.
        ignored: Whether an object is ignored in each setting.
        crowd: Whether any number of detections may take an object.
    """
    matched = np.zeros((len(_LEAST), len(near)), dtype=bool)
    unjudged = np.zeros_like(matched)
    taken = np.zeros_like(ignored)
    settings = np.arange(len(_LEAST))[:, None]
    starts = np.searchsorted(pairs.detection, near)
    sizes = np.diff(starts, append=len(pairs.detection))
    turn = place_among_equals(images[near])
    for number in range(int(turn.max(initial=-1)) + 1):
        column = np.flatnonzero(turn == number)
        size = sizes[column]
        first = np.cumsum(size) - size
        places = np.arange(size.sum()) + np.repeat(starts[column] - first, size)
        candidate = pairs.object[places]
        free = ~taken[:, candidate] | crowd[candidate]
        free &= pairs.overlap[places] >= _LEAST[:, None]
        number_of = np.where(free, np.arange(len(places)), -1)
        judged = np.where(ignored[:, candidate], -1, number_of)
        best = np.maximum.reduceat(judged, first, axis=1)
        best = np.where(best < 0, np.maximum.reduceat(number_of, first, axis=1), best)
        hit = best >= 0
        chosen = candidate[best]
        # The detections of a turn belong to different images, so they choose different objects.
        taken[np.broadcast_to(settings, hit.shape)[hit], chosen[hit]] = True
        matched[:, column] = hit
        unjudged[:, column] = hit & ignored[settings, chosen]
    return matched, unjudged
