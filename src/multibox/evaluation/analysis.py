"""Everything that the summary page says about the detections of a split."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from multibox.evaluation.bootstrap import Spread, bootstrap
from multibox.evaluation.confidence import ThresholdCurve, threshold_curve
from multibox.evaluation.confusion import ConfusionMatrix, confusion_matrix
from multibox.evaluation.errors import DetectionErrors, find_errors
from multibox.evaluation.found_objects import FoundObjects, group_objects
from multibox.evaluation.voc import ClassDetections, ClassObjects, Verdicts, judge_classes


class Analysis(NamedTuple):
    """The strengths and weaknesses of a detector on a split.

    Attributes:
        verdicts: The verdicts on the detections of each class.
        score_threshold: The threshold of `confusion` and `found_objects`; 0 without a right
            detection.
        errors: The errors by kind, and what each kind costs.
        thresholds: Right and wrong detections over the score threshold, by class.
        all_thresholds: The same for all classes together.
        confusion: The confusion matrix.
        spread: The mean average precisions of resampled images.
        found_objects: The objects that are found, by size, shape and position.
    """

    verdicts: dict[str, Verdicts]
    score_threshold: float
    errors: DetectionErrors
    thresholds: dict[str, ThresholdCurve]
    all_thresholds: ThresholdCurve
    confusion: ConfusionMatrix
    spread: Spread
    found_objects: FoundObjects


def analyse(
    detections: Mapping[str, ClassDetections],
    objects: Mapping[str, ClassObjects],
    sizes_px: Int64[np.ndarray, "I 2"],
    *,
    score_threshold: float | None = None,
    seed: int = 0,
) -> Analysis:
    """Returns the analysis of the detections of a split.

    Args:
        detections: Detections by class. A class may be absent.
        objects: Objects by class, at least one class. Arrays are empty for a class without objects.
        sizes_px: int64 (I, 2), height and width of each image of the split in pixels, at least one.
        score_threshold: Lowest score of the detections in the confusion matrix and of found
            objects, 0..1. None: the one with the best F1 over all classes on this split.
        seed: Seed of the resamples.

    Raises:
        DataError: There are detections of a class that is not among the objects'.
    """
    verdicts = judge_classes(detections, objects)
    all_thresholds = threshold_curve([*verdicts.values()])
    if score_threshold is None:
        best = all_thresholds.best()
        score_threshold = best.threshold if best else 0.0
    return Analysis(
        verdicts,
        score_threshold,
        find_errors(detections, objects),
        {name: threshold_curve([each]) for name, each in verdicts.items()},
        all_thresholds,
        confusion_matrix(detections, objects, score_threshold=score_threshold),
        bootstrap(verdicts, objects, len(sizes_px), seed=seed),
        group_objects(verdicts, objects, sizes_px, score_threshold=score_threshold),
    )
