"""TIDE: the kinds of errors of a detector, and how much average precision each kind costs.

The rules are from TIDE (Bolya, Foley, Hays and Hoffman: "TIDE: A General Toolbox for Identifying
Object Detection Errors", 2020) and from its code (`tidecv/quantify.py`):

- The best detections of an image are matched by descending score. Each takes the free object of its
  class that it overlaps most, if the overlap is at least 0.5. A box does not include its last
  pixels.
- A detection that takes no object is an error of one kind. The first that holds is chosen:
    1. `localization`: the largest overlap with an object of its class is 0.1 to 0.5.
    2. `classification`: the overlap with an object of another class is at least 0.5.
    3. `duplicate`: the overlap with an object of its class that is taken is at least 0.5.
    4. `background`: no overlap is larger than 0.1.
    5. `both`: everything else.
- An object that no detection takes is `missed`, unless it is the object of an error of localization
  or classification.
- The cost of a kind is the average precision that is gained if its errors are mended. The best
  error of localization or classification of a free object becomes right. All other errors
  of the kind are removed. For `missed`, the missed objects do not count.
- The average precision is the mean of the best precisions at the recalls 0, 0.01, ... 1.

TIDE has no difficult objects. Here, a detection that takes no object and overlaps a difficult
object of its class by at least 0.5 is neither right nor wrong, and difficult objects are not
missed. Unlike in TIDE, a class without objects is not part of the mean.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64

from multibox.evaluation.error_costs import MeanPrecision
from multibox.evaluation.pairs import place_among_equals
from multibox.evaluation.pooled import (
    Pairs,
    PooledDetections,
    PooledObjects,
    overlapping_pairs,
    pool_detections,
    pool_objects,
)
from multibox.evaluation.voc import ClassDetections, ClassObjects, require_ground_truth

ErrorKind = Literal["classification", "localization", "both", "duplicate", "background", "missed"]
KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)

FOREGROUND, BACKGROUND = 0.5, 0.1
"""Overlap of a hit, and the largest overlap of a detection of the background."""

MAX_DETECTIONS = 100
"""Number of detections of an image that count, of all classes together (`tidecv/data.py`)."""


class ErrorRows(NamedTuple):
    """The E errors of one kind, by image, then by descending score.

    Attributes:
        images: int64 (E,), the index of the image in the image set.
        detection_classes: int64 (E,), the class of the detection, 0..C-1; -1 for a missed object.
        detections: int64 (E,), its index in the `ClassDetections` of that class; -1.
        scores: float64 (E,), its score; NaN for a missed object.
        object_classes: int64 (E,), the class of the object; -1 if the detection overlaps none. For
            `both` and `background` it is the object that the detection overlaps most.
        objects: int64 (E,), its index in the `ClassObjects` of that class; -1.
        overlaps: float64 (E,), the overlap of the two; 0 if one of them is missing.
    """

    images: Int64[np.ndarray, " E"]
    detection_classes: Int64[np.ndarray, " E"]
    detections: Int64[np.ndarray, " E"]
    scores: Float64[np.ndarray, " E"]
    object_classes: Int64[np.ndarray, " E"]
    objects: Int64[np.ndarray, " E"]
    overlaps: Float64[np.ndarray, " E"]


class DetectionErrors(NamedTuple):
    """The errors of a detector, and their costs.

    Attributes:
        average_precision: Mean average precision at an overlap of 0.5, 0..1; NaN without objects.
        costs: Average precision that each kind costs by itself, 0..1. They do not add up.
        false_positives: Average precision gained if all wrong detections were removed.
        false_negatives: Average precision gained if objects without a detection did not count.
        rows: The errors of each kind.
    """

    average_precision: float
    costs: dict[ErrorKind, float]
    false_positives: float
    false_negatives: float
    rows: dict[ErrorKind, ErrorRows]


def find_errors(
    detections: Mapping[str, ClassDetections],
    objects: Mapping[str, ClassObjects],
    *,
    max_detections: int = MAX_DETECTIONS,
) -> DetectionErrors:
    """Returns the errors of a detector by kind.

    Args:
        detections: Detections by class. A class may be absent.
        objects: Objects by class, at least one class. Arrays are empty for a class without objects.
        max_detections: Number of detections of an image that count, of all classes together.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    require_ground_truth(detections, objects)
    found, truth = pool_detections(detections, objects), pool_objects(objects)
    found = found.take(place_among_equals(found.images) < max_detections)
    pairs = overlapping_pairs(found, truth, last_pixels=False)
    same_class = found.classes[pairs.detection] == truth.classes[pairs.object]
    difficult = truth.difficult[pairs.object]
    taken = _match(pairs.take(same_class & ~difficult), len(found.images), len(truth.images))
    right = taken >= 0
    unjudged = _nearest(pairs.take(same_class & difficult), len(right)).overlap >= FOREGROUND
    free = ~truth.difficult
    free[taken[right]] = False
    judged = _classify(pairs.take(~difficult), same_class[~difficult], free, len(right))
    kinds = np.where(right | unjudged, -1, judged.kinds)
    mended, missed = _mend(kinds, judged.objects, free)
    counts = right | ~unjudged
    score = MeanPrecision(found, right, truth, len(objects))
    base = score.before(counts)
    # An error without an object has the index -1.
    object_classes = np.append(truth.classes, -1)[judged.objects]
    costs: dict[ErrorKind, float] = {}
    for code, kind in enumerate(KINDS):
        of_kind = kinds == code
        gained = score.after(
            np.where(of_kind & mended, object_classes, found.classes),
            right | (of_kind & mended),
            counts & ~(of_kind & ~mended),
            without=missed if kind == "missed" else None,
        )
        costs[kind] = max(gained - base, 0.0)
    perfect = score.after(found.classes, right, right)
    complete = score.after(found.classes, right, counts, without=np.flatnonzero(free))
    rows = {
        kind: _rows(np.flatnonzero(kinds == code), judged, found, truth)
        for code, kind in enumerate(KINDS[:-1])
    }
    rows["missed"] = _missed_rows(missed, truth)
    return DetectionErrors(base, costs, perfect - base, complete - base, rows)


class _Nearest(NamedTuple):
    """The largest overlap of each detection, and its object: 0 and -1 without pairs."""

    overlap: Float64[np.ndarray, " N"]
    object: Int64[np.ndarray, " N"]


def _nearest(pairs: Pairs, count: int) -> _Nearest:
    first = np.flatnonzero(np.diff(pairs.detection, prepend=-1))
    nearest = _Nearest(np.zeros(count), np.full(count, -1))
    nearest.overlap[pairs.detection[first]] = pairs.overlap[first]
    nearest.object[pairs.detection[first]] = pairs.object[first]
    return nearest


def _match(pairs: Pairs, num_detections: int, num_objects: int) -> Int64[np.ndarray, " N"]:
    """Returns the object that each detection takes, or -1. Pairs are of the same class."""
    near = pairs.take(pairs.overlap >= FOREGROUND)
    taken, free = [-1] * num_detections, [True] * num_objects
    for detection, item in zip(near.detection.tolist(), near.object.tolist(), strict=True):
        if taken[detection] < 0 and free[item]:
            taken[detection], free[item] = item, False
    return np.array(taken, np.int64)


class _Judged(NamedTuple):
    """For each detection: its kind as an index of `KINDS`, an object or -1, and their overlap."""

    kinds: Int64[np.ndarray, " N"]
    objects: Int64[np.ndarray, " N"]
    overlaps: Float64[np.ndarray, " N"]


def _classify(
    pairs: Pairs, same_class: Bool[np.ndarray, " P"], free: Bool[np.ndarray, " G"], count: int
) -> _Judged:
    """Returns the kind of error that each detection is, if it is one (`TIDERun._eval_image`)."""
    own = _nearest(pairs.take(same_class), count)
    other = _nearest(pairs.take(~same_class), count)
    used = _nearest(pairs.take(same_class & ~free[pairs.object]), count)
    closest = other.overlap > own.overlap
    nearest = [np.where(closest, b, a) for a, b in zip(own, other, strict=True)]
    kinds: tuple[tuple[ErrorKind, Bool[np.ndarray, " N"], Sequence[np.ndarray]], ...] = (
        ("localization", (own.overlap >= BACKGROUND) & (own.overlap <= FOREGROUND), own),
        ("classification", other.overlap >= FOREGROUND, other),
        ("duplicate", used.overlap >= FOREGROUND, used),
        ("background", nearest[0] <= BACKGROUND, nearest),
        ("both", np.ones(count, dtype=bool), nearest),
    )
    conditions = [condition for _, condition, _ in kinds]
    return _Judged(
        np.select(conditions, [np.int64(KINDS.index(kind)) for kind, _, _ in kinds]),
        np.select(conditions, [item for _, _, (_, item) in kinds]),
        np.select(conditions, [overlap for _, _, (overlap, _) in kinds]),
    )


def _mend(
    kinds: Int64[np.ndarray, " N"], objects: Int64[np.ndarray, " N"], free: Bool[np.ndarray, " G"]
) -> tuple[Bool[np.ndarray, " N"], Int64[np.ndarray, " M"]]:
    """Returns whether an error would be right if it were mended, and the missed objects.

    Args:
        kinds: The kind of each error; -1 for other detections.
        objects: The object of each error.
        free: Whether an object is neither taken nor difficult.
    """
    codes = [KINDS.index("classification"), KINDS.index("localization")]
    errors = np.flatnonzero(np.isin(kinds, codes) & np.append(free, False)[objects])
    # The detections of an image are sorted by score, so the first is the best.
    found, first = np.unique(objects[errors], return_index=True)
    mended = np.zeros(len(kinds), dtype=bool)
    mended[errors[first]] = True
    return mended, np.setdiff1d(np.flatnonzero(free), found)


def _rows(
    chosen: Int64[np.ndarray, " E"], judged: _Judged, found: PooledDetections, truth: PooledObjects
) -> ErrorRows:
    items, some = judged.objects[chosen], judged.objects[chosen] >= 0
    object_classes, places = np.full((2, len(chosen)), -1)
    object_classes[some], places[some] = truth.classes[items[some]], truth.places[items[some]]
    return ErrorRows(
        found.images[chosen],
        found.classes[chosen],
        found.places[chosen],
        found.scores[chosen],
        object_classes,
        places,
        judged.overlaps[chosen],
    )


def _missed_rows(missed: Int64[np.ndarray, " E"], truth: PooledObjects) -> ErrorRows:
    missed = missed[np.argsort(truth.images[missed], kind="stable")]
    nothing = np.full(len(missed), -1)
    return ErrorRows(
        truth.images[missed],
        nothing,
        nothing,
        np.full(len(missed), np.nan),
        truth.classes[missed],
        truth.places[missed],
        np.zeros(len(missed)),
    )
