"""The confusion matrix of a detector at a score threshold."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from multibox.evaluation.pooled import overlapping_pairs, pool_detections, pool_objects
from multibox.evaluation.voc import ClassDetections, ClassObjects, require_ground_truth


class ConfusionMatrix(NamedTuple):
    """How often objects of each class are detected as each class.

    Attributes:
        classes: The C class names.
        counts: int64 (C + 1, C + 1). Rows are the annotated classes, columns the detected ones. The
            last row has the detections of nothing, the last column the objects that are not
            detected. The last number of both is 0.
        score_threshold: Lowest score of the detections.
    """

    classes: tuple[str, ...]
    counts: Int64[np.ndarray, "C1 C1"]
    score_threshold: float


def confusion_matrix(
    detections: Mapping[str, ClassDetections],
    objects: Mapping[str, ClassObjects],
    *,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> ConfusionMatrix:
    """Returns the confusion matrix of the detections with at least a certain score.

    The detections of an image are matched by descending score, regardless of the classes. Each
    takes the object that it overlaps most, if the overlap is large enough, among the difficult
    objects and those that are still free. Overlaps are VOC's, with the last pixels of the boxes. A
    detection that takes a difficult object does not count. Difficult objects do not count.

    So an object that is detected as two classes counts only once, for the higher score. The other
    detection is one of nothing. The diagonal can differ from the right detections of VOC, which
    match each class separately.

    Args:
        detections: Detections by class. A class may be absent.
        objects: Objects by class, at least one class. Arrays are empty for a class without objects.
        score_threshold: Lowest score of the detections, 0..1.
        iou_threshold: Minimum overlap, above 0.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    require_ground_truth(detections, objects)
    found = pool_detections(detections, objects, score_threshold=score_threshold)
    truth = pool_objects(objects)
    pairs = overlapping_pairs(found, truth, last_pixels=True)
    near = pairs.take(pairs.overlap >= iou_threshold)
    taken, detected = [-1] * len(found.images), [-1] * len(truth.images)
    difficult = truth.difficult.tolist()
    for detection, item in zip(near.detection.tolist(), near.object.tolist(), strict=True):
        if taken[detection] < 0 and (difficult[item] or detected[item] < 0):
            taken[detection] = item
            detected[item] = detection
    background = len(objects)
    # An object or a detection without a partner has the index -1.
    annotated = np.append(truth.classes, background)[taken]
    counts = np.zeros((background + 1, background + 1), np.int64)
    ignored = np.append(truth.difficult, False)[taken]
    np.add.at(counts, (annotated[~ignored], found.classes[~ignored]), 1)
    missed = (np.array(detected, np.int64) < 0) & ~truth.difficult
    counts[:-1, -1] = np.bincount(truth.classes[missed], minlength=background)
    return ConfusionMatrix(tuple(objects), counts, score_threshold)
