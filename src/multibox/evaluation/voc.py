"""Average precision as the VOC devkit computes it, in NumPy for all images of a class at once.

Both editions of the devkit use the same rules for detections (`VOCevaldet.m`): the overlap includes
the last pixels of the boxes (+1); a detection is right if its overlap is at least 0.5; a second
detection of the same object is wrong; detections of difficult objects do not count. The editions
differ in how they average the curve: over 11 points in 2007, by the area in 2012 (`VOCap.m`). Fact
sheet: sections 7.1 and 7.2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from multibox.errors import DataError
from multibox.evaluation.pairs import of_the_same_image, overlaps

VocMetric = Literal["voc07", "voc12"]

_UP = np.arange(11) * 0.1
RECALL_THRESHOLDS = np.concatenate([_UP[:6], 1 - _UP[4::-1]])
"""The devkit's `0:0.1:1` as MATLAB computes it: upwards from 0 in the first half, downwards from 1
in the second. So a recall of exactly 3/10 falls short of its threshold by a rounding error, and
recalls of 6/10 and 7/10 do not."""

OCTAVE_RECALL_THRESHOLDS = _UP
"""The same in Octave and in the ports to Python, which count upwards: recalls of exactly 6/10 and
7/10 fall short, too."""


class ClassDetections(NamedTuple):
    """The detections of one class in all images. Among equal scores, the first is ranked first.

    Attributes:
        images: int64 (N,), the index of the image in the image set.
        scores: float64 (N,), in any order.
        boxes_px: float64 (N, 4), xyxy in the frame of the annotations.
    """

    images: Int64[np.ndarray, " N"]
    scores: Float64[np.ndarray, " N"]
    boxes_px: Float64[np.ndarray, "N 4"]


class ClassObjects(NamedTuple):
    """The annotated objects of one class in all images.

    Attributes:
        images: int64 (G,), the index of the image in the image set.
        boxes_px: float64 (G, 4), xyxy as annotated.
        difficult: bool (G,).
        areas_px2: float64 (G,), annotated areas, for COCO's sizes. None: the areas of the boxes.
    """

    images: Int64[np.ndarray, " G"]
    boxes_px: Float64[np.ndarray, "G 4"]
    difficult: Bool[np.ndarray, " G"]
    areas_px2: Float64[np.ndarray, " G"] | None = None


class Verdicts(NamedTuple):
    """How the detections of one class are judged, by descending score.

    Attributes:
        order: int64 (N,), the index of the detection in its `ClassDetections`.
        images: int64 (N,), the index of the image in the image set.
        scores: float64 (N,), descending.
        hit: int64 (N,), the index of the object that it hits; -1 if it hits none.
        right: bool (N,), whether it is the first that hits its object.
        counts: bool (N,), False if it hits a difficult object.
        num_objects: Number of objects that are not difficult.
    """

    order: Int64[np.ndarray, " N"]
    images: Int64[np.ndarray, " N"]
    scores: Float64[np.ndarray, " N"]
    hit: Int64[np.ndarray, " N"]
    right: Bool[np.ndarray, " N"]
    counts: Bool[np.ndarray, " N"]
    num_objects: int


class Curve(NamedTuple):
    """Recall and precision after each detection that counts, by descending score.

    Detections of difficult objects are left out, because they change neither number.

    Attributes:
        recall: float64 (N,), ascending, in 0..1; NaN if there are no objects.
        precision: float64 (N,), in 0..1.
        scores: float64 (N,), descending.
        num_objects: Number of objects that are not difficult.
    """

    recall: Float64[np.ndarray, " N"]
    precision: Float64[np.ndarray, " N"]
    scores: Float64[np.ndarray, " N"]
    num_objects: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VocResult:
    """The mean average precision, with the average precision and the curve of each class."""

    metric: VocMetric
    """voc07: 11 points. voc12: area."""

    mean: float
    """Mean over the classes with objects."""

    by_class: dict[str, float]
    """Average precision of each class; NaN for a class without objects."""

    curves: dict[str, Curve]
    """Curve of each class."""


NO_DETECTIONS = ClassDetections(np.empty(0, np.int64), np.empty(0), np.empty((0, 4)))


def evaluate_voc(
    detections: Mapping[str, ClassDetections],
    objects: Mapping[str, ClassObjects],
    metric: VocMetric,
) -> VocResult:
    """Returns the devkit's average precision of every class in `objects`.

    Args:
        detections: Detections by class. A class may be absent.
        objects: Objects by class. Arrays are empty for a class without objects.
        metric: voc07 is what the VOC2007 devkit prints in MATLAB, voc12 what that of VOC2012 does.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    return average(voc_curves(detections, objects), metric)


def voc_curves(
    detections: Mapping[str, ClassDetections], objects: Mapping[str, ClassObjects]
) -> dict[str, Curve]:
    """Returns the curve of every class in `objects`. It is the same in both editions.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    return {name: curve_of(each) for name, each in judge_classes(detections, objects).items()}


def judge_classes(
    detections: Mapping[str, ClassDetections], objects: Mapping[str, ClassObjects]
) -> dict[str, Verdicts]:
    """Returns the verdicts on the detections of every class in `objects`.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    require_ground_truth(detections, objects)
    return {name: judge(detections.get(name, NO_DETECTIONS), objects[name]) for name in objects}


def average(curves: dict[str, Curve], metric: VocMetric) -> VocResult:
    """Returns the average precisions of curves."""
    average_precision = average_precision_11_point if metric == "voc07" else average_precision_area
    by_class = {name: average_precision(curve) for name, curve in curves.items()}
    mean = mean_average_precision(by_class)
    return VocResult(metric=metric, mean=mean, by_class=by_class, curves=curves)


def require_ground_truth(
    detections: Mapping[str, ClassDetections], objects: Mapping[str, ClassObjects]
) -> None:
    """Raises a DataError if there are detections of a class that is not among the objects'."""
    unknown = sorted(set(detections) - set(objects))
    if unknown:
        raise DataError(
            f"there are detections of {', '.join(unknown)}, but no ground truth",
            kind="class-unknown",
            remedy="Evaluate with the classes that the network was trained on",
        )


def judge(
    detections: ClassDetections, objects: ClassObjects, *, iou_threshold: float = 0.5
) -> Verdicts:
    """Returns which detections of one class are right (`VOCevaldet.m`).

    Each detection is compared only with the object that it overlaps most, or the first of several.
    It is right if no detection with a higher score has hit that object.

    Args:
        detections: Detections of the class.
        objects: Objects of the class, in the order of the annotations.
        iou_threshold: Minimum overlap of a hit, above 0.
    """
    # MATLAB's sort is stable: equal scores keep the order of the file.
    order = np.argsort(-detections.scores, kind="stable")
    largest, nearest = _nearest_objects(detections, objects)
    hit = np.where(largest >= iou_threshold, nearest, -1)[order]
    hits = np.flatnonzero(hit >= 0)
    counts = np.ones(len(order), dtype=bool)
    counts[hits[objects.difficult[hit[hits]]]] = False
    _, first = np.unique(hit[hits], return_index=True)
    right = np.zeros(len(order), dtype=bool)
    right[hits[first]] = True
    return Verdicts(
        order,
        detections.images[order],
        detections.scores[order],
        hit,
        right & counts,
        counts,
        int((~objects.difficult).sum()),
    )


def precision_recall(
    detections: ClassDetections, objects: ClassObjects, *, iou_threshold: float = 0.5
) -> Curve:
    """Returns the curve of one class. The arguments are as in `judge`."""
    return curve_of(judge(detections, objects, iou_threshold=iou_threshold))


def curve_of(verdicts: Verdicts) -> Curve:
    """Returns the curve of the judged detections of one class."""
    counts, num_objects = verdicts.counts, verdicts.num_objects
    num_right = np.cumsum(verdicts.right[counts])
    return Curve(
        recall=num_right / num_objects if num_objects else np.full(len(num_right), np.nan),
        precision=num_right / np.arange(1, len(num_right) + 1),
        scores=verdicts.scores[counts],
        num_objects=num_objects,
    )


def average_precision_11_point(
    curve: Curve, thresholds: Float64[np.ndarray, "11"] = RECALL_THRESHOLDS
) -> float:
    """Returns the mean of the best precisions at recalls from 0, 0.1, ... 1 (VOC2007).

    A class without objects has NaN, where the devkit prints 0.

    Args:
        curve: The curve of the class.
        thresholds: The recalls. `OCTAVE_RECALL_THRESHOLDS` gives what the devkit prints in Octave.
    """
    if not curve.num_objects:
        return math.nan
    first = np.searchsorted(curve.recall, thresholds)
    return float(np.append(_envelope(curve.precision), 0.0)[first].mean())


def average_precision_area(curve: Curve) -> float:
    """Returns the area under the curve made non-increasing (VOC2012, `VOCap.m`).

    A class without objects has NaN, where the devkit prints NaN, or 0 if nothing was detected.
    """
    if not curve.num_objects:
        return math.nan
    steps = np.diff(curve.recall, prepend=0.0)
    return float(steps @ _envelope(curve.precision))


def mean_average_precision(by_class: Mapping[str, float]) -> float:
    """Returns the mean over the classes that are not NaN; NaN if all are.

    A class without objects says nothing about a detector, so it does not lower the mean. Caffe
    divides by all classes and counts such a class as 0 (`solver.cpp:543`): for a split that lacks
    classes its mean is lower.
    """
    known = [value for value in by_class.values() if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _envelope(precision: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Returns the best precision at this recall or a higher one."""
    envelope: np.ndarray = np.maximum.accumulate(precision[::-1])[::-1]
    return envelope


def _nearest_objects(
    detections: ClassDetections, objects: ClassObjects
) -> tuple[Float64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Returns the largest overlap of each detection with an object of its image, and that object.

    If the image has no object, the overlap is 0 and the index -1.
    """
    detection, index = of_the_same_image(detections.images, objects.images)
    largest, nearest = np.zeros(len(detections.images)), np.full(len(detections.images), -1)
    if not len(detection):
        return largest, nearest
    first_pair = np.flatnonzero(np.diff(detection, prepend=-1))
    paired = detection[first_pair]
    place = np.repeat(np.arange(len(paired)), np.diff(first_pair, append=len(detection)))
    overlap = overlaps(detections.boxes_px[detection], objects.boxes_px[index], last_pixels=True)
    best = np.maximum.reduceat(overlap, first_pair)
    ties = np.flatnonzero(overlap == best[place])
    _, first = np.unique(place[ties], return_index=True)
    largest[paired], nearest[paired] = best, index[ties[first]]
    return largest, nearest
