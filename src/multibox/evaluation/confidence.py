"""Precision, recall and F1 over the score threshold, and the threshold with the best F1.

Detections are right or wrong by the rules of VOC (`voc.judge`). Those of difficult objects do not
count.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from multibox.evaluation.voc import Verdicts


class OperatingPoint(NamedTuple):
    """The results if detections below a threshold are left out.

    Attributes:
        threshold: Lowest score of the detections that remain.
        right: Number of right detections.
        wrong: Number of wrong detections.
        missed: Number of objects that are not found.
    """

    threshold: float
    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right, 0..1; NaN without detections."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else math.nan

    @property
    def recall(self) -> float:
        """Share of the objects that are found, 0..1; NaN without objects."""
        return self.right / (self.right + self.missed) if self.right + self.missed else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0..1; NaN without objects and detections."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else math.nan

    def as_json(self) -> dict[str, float]:
        """Returns the fields and the three shares by name."""
        shares = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return self._asdict() | shares


class ThresholdCurve(NamedTuple):
    """The numbers of right and wrong detections at every threshold that makes a difference.

    Attributes:
        thresholds: float64 (T,), the distinct scores of the detections that count, descending.
        right: int64 (T,), number of right detections with at least this score.
        wrong: int64 (T,), number of wrong detections with at least this score.
        num_objects: Number of objects that are not difficult.
    """

    thresholds: Float64[np.ndarray, " T"]
    right: Int64[np.ndarray, " T"]
    wrong: Int64[np.ndarray, " T"]
    num_objects: int

    @property
    def precision(self) -> Float64[np.ndarray, " T"]:
        """float64 (T,), share of the detections that are right, 0..1."""
        return np.asarray(self.right / (self.right + self.wrong))

    @property
    def recall(self) -> Float64[np.ndarray, " T"]:
        """float64 (T,), share of the objects that are found, 0..1; NaN without objects."""
        total = self.num_objects
        return np.asarray(self.right / total) if total else np.full(len(self.right), np.nan)

    @property
    def f1(self) -> Float64[np.ndarray, " T"]:
        """float64 (T,), harmonic mean of precision and recall, 0..1."""
        return np.asarray(2 * self.right / (self.right + self.wrong + self.num_objects))

    def best(self) -> OperatingPoint | None:
        """Returns the point with the best F1; None if no detection is right.

        Among equal ones, it is the highest threshold, which leaves out the most detections.
        """
        if not self.right.any():
            return None
        return self._point(int(self.f1.argmax()))

    def at(self, threshold: float) -> OperatingPoint:
        """Returns the point of any threshold."""
        count = int(np.searchsorted(-self.thresholds, -threshold, side="right"))
        if not count:
            return OperatingPoint(threshold, 0, 0, self.num_objects)
        return self._point(count - 1)._replace(threshold=threshold)

    def _point(self, place: int) -> OperatingPoint:
        right, wrong = int(self.right[place]), int(self.wrong[place])
        return OperatingPoint(float(self.thresholds[place]), right, wrong, self.num_objects - right)


def threshold_curve(verdicts: Sequence[Verdicts]) -> ThresholdCurve:
    """Returns the curve of one class, or of several classes together.

    Together, every detection and every object has the same weight, so frequent classes matter most.

    Args:
        verdicts: The verdicts on the detections of each class, at least one class.
    """
    scores = np.concatenate([each.scores[each.counts] for each in verdicts])
    right = np.concatenate([each.right[each.counts] for each in verdicts])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    # Equal scores are above the same thresholds.
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    num_right = right[order].cumsum()[last]
    return ThresholdCurve(
        scores[last],
        num_right,
        last + 1 - num_right,
        sum(each.num_objects for each in verdicts),
    )
