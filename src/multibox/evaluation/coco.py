"""The average precision of COCO, over ten thresholds of overlap, for a class at once, in NumPy.

It takes the same detections and objects as `voc.py`. COCO knows no difficult objects; they become
crowds, the only objects that its evaluation ignores (`cocoeval.py` overwrites `ignore` with
`iscrowd`). As in VOC, any number of detections may hit one without counting; other than in VOC, it
suffices that half of the detection, rather than of the union, lies in it.

pycocotools matches the detections of every image, threshold and range of areas on its own
(`COCOeval.evaluateImg`). Here the best detections of all images, then all second ones, are matched
at once for all 40 settings, and only those that overlap an object by half.
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
# Lowest and highest area of all, small, medium and large objects (`Params.setDetParams`).
AREAS_PX = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
MAX_DETECTIONS = 100

# A setting is a threshold of overlap and a range of areas: S of them, ranges running faster.
_LEAST = IOU_THRESHOLDS.repeat(len(AREAS_PX))
_RANGE = np.tile(np.arange(len(AREAS_PX)), len(IOU_THRESHOLDS))


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoResult:
    """Average precisions over all classes, each NaN where there is no such object."""

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
    """Returns COCO's average precisions, of the best 100 detections per image and class.

    Boxes are taken as they are, without VOC's additional pixel: the width is x1 - x0.

    Args:
        detections: By class; a class that is absent has none.
        objects: By class; a class that an image set lacks has empty arrays.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    require_ground_truth(detections, objects)
    by_class = {
        name: _average_precisions(detections.get(name, NO_DETECTIONS), objects[name])
        for name in objects
    }
    # By class, threshold and range.
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
    """The mean over what there are objects for."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


class _Boxes(NamedTuple):
    """Boxes in COCO's form: (x, y, width, height), whose right side is x + width."""

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
    # The area of an object is that of its mask, of a detection that of its box.
    areas = truth.area if objects.areas_px2 is None else objects.areas_px2
    ignored = (objects.difficult | _outside(areas))[_RANGE]
    # By descending score; equal ones by image, and in an image as they come.
    order = np.lexsort((detections.images, -detections.scores))
    order = order[place_among_equals(detections.images[order]) < MAX_DETECTIONS]
    images = detections.images[order]
    found = _coco_boxes(detections.boxes_px[order])
    pairs = _pairs(images, found, objects.images, truth, objects.difficult)
    near = np.unique(pairs.detection)
    matched, unjudged = _match(pairs, images, near, ignored, objects.difficult)
    far_off = _outside(found.area)
    # Of those that overlap nothing by half, how many count up to a detection, by range.
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
    """Whether areas are outside of each range; its limits belong to it."""
    return np.asarray((area < AREAS_PX[:, :1]) | (area > AREAS_PX[:, 1:]))


def _average_precision(counted: Int64[np.ndarray, " N"], num_objects: int) -> float:
    """Returns the mean of the best precisions at 101 recalls; NaN without objects.

    Args:
        counted: For each right detection, by descending score: how many count up to it.
        num_objects: Those that are not ignored.
    """
    if not num_objects:
        return math.nan
    right = np.arange(1, len(counted) + 1)
    precision = right / counted
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(right / num_objects, RECALL_THRESHOLDS)
    return float(np.append(envelope, 0.0)[first].mean())


class _Pairs(NamedTuple):
    """Detections and objects of the same images that overlap by half; P of them.

    Of a detection's pairs, the last that may be matched is the one to be matched: they come by
    overlap, and of equal ones pycocotools takes the last.
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
    """Returns the pairs, by detection (`bbIou` in `maskApi.c`)."""
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
    """Returns whether the detections with pairs are matched, and whether to an ignored object.

    Every detection in turn takes the object that it overlaps most of those still free, and an
    ignored one only where there is no other.

    Args:
        pairs: By detection.
        images: Of all detections, by descending score.
        near: The detections that have pairs, ascending.
        ignored: Which objects are ignored in each setting.
        crowd: Which objects any number of detections may take.
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
        # Detections of a turn are of different images, so that no two choose the same.
        taken[np.broadcast_to(settings, hit.shape)[hit], chosen[hit]] = True
        matched[:, column] = hit
        unjudged[:, column] = hit & ignored[settings, chosen]
    return matched, unjudged
