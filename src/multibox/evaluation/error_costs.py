"""TIDE's average precision, before and after errors are mended."""

import numpy as np
from jaxtyping import Bool, Int64

from multibox.evaluation.pooled import PooledDetections, PooledObjects
from multibox.evaluation.voc import mean_average_precision

_RECALLS = np.arange(101) / 100


class MeanPrecision:
    """Computes the mean average precision before and after errors are mended.

    Args:
        found: The detections.
        right: Whether each of them is right.
        truth: The objects.
        num_classes: Number of classes C.
    """

    def __init__(
        self,
        found: PooledDetections,
        right: Bool[np.ndarray, " N"],
        truth: PooledObjects,
        num_classes: int,
    ) -> None:
        self._found, self._right, self._truth = found, right, truth
        self._num_objects = np.bincount(truth.classes[~truth.difficult], minlength=num_classes)
        # Among equal scores, TIDE counts errors before the others, but only after it has mended
        # some (`TIDERun.fix_errors`).
        self._order = np.argsort(-found.scores, kind="stable")
        self._errors_first = np.lexsort((right, -found.scores))

    def before(self, counts: Bool[np.ndarray, " N"]) -> float:
        """Returns the average precision of the detections that count."""
        order = self._order[counts[self._order]]
        return self._mean(self._found.classes[order], self._right[order], self._num_objects)

    def after(
        self,
        classes: Int64[np.ndarray, " N"],
        right: Bool[np.ndarray, " N"],
        counts: Bool[np.ndarray, " N"],
        *,
        without: Int64[np.ndarray, " M"] | None = None,
    ) -> float:
        """Returns the average precision with other detections.

        Args:
            classes: The class of each detection.
            right: Whether it is right.
            counts: Whether it counts.
            without: The objects that do not count. None: all count.
        """
        order = self._errors_first[counts[self._errors_first]]
        num_objects = self._num_objects
        if without is not None:
            left_out = self._truth.classes[without]
            num_objects = num_objects - np.bincount(left_out, minlength=len(num_objects))
        return self._mean(classes[order], right[order], num_objects)

    def _mean(
        self,
        classes: Int64[np.ndarray, " N"],
        right: Bool[np.ndarray, " N"],
        num_objects: Int64[np.ndarray, " C"],
    ) -> float:
        by_class = right[np.argsort(classes, kind="stable")]
        ends = np.bincount(classes, minlength=len(num_objects)).cumsum()
        parts = np.split(by_class, ends[:-1])
        return mean_average_precision(
            {
                str(label): _average_precision(part, count)
                for label, (part, count) in enumerate(zip(parts, num_objects.tolist(), strict=True))
                if self._num_objects[label] and (count or len(part))
            }
        )


def _average_precision(right: Bool[np.ndarray, " N"], num_objects: int) -> float:
    """Returns the mean of the best precisions at 101 recalls (`APDataObject.get_ap`).

    Args:
        right: Whether each detection of the class is right, by descending score.
        num_objects: Number of objects.
    """
    if not num_objects:
        return 0.0
    places = np.flatnonzero(right)
    numbers = np.arange(1, len(places) + 1)
    envelope = np.maximum.accumulate((numbers / (places + 1))[::-1])[::-1]
    first = np.searchsorted(numbers / num_objects, _RECALLS)
    return float(np.append(envelope, 0.0)[first].mean())
