"""How much the average precision depends on the choice of the images.

A resample draws as many images as there are, with replacement, and the average precision of the
drawn images is computed (Efron's bootstrap). An image that is drawn twice counts as two images.
The detections keep their verdicts, so only sums over the images change.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from multibox.evaluation.voc import RECALL_THRESHOLDS, ClassObjects, Verdicts, VocMetric
from multibox.rng import stream

RESAMPLES = 1_000
"""Number of resamples. The limits of an interval then vary by a few percent of its width."""

_AT_A_TIME = 50


class Spread(NamedTuple):
    """The average precisions of the resamples.

    Attributes:
        means: The means over the classes: float64 (R,) by metric, 0..1. NaN for a resample without
            objects.
        classes: The average precisions of each class: float64 (R,) by metric and class, 0..1. NaN
            for a resample without objects of the class.
    """

    means: dict[VocMetric, Float64[np.ndarray, " R"]]
    classes: dict[VocMetric, dict[str, Float64[np.ndarray, " R"]]]

    def interval(self, metric: VocMetric, share: float = 0.95) -> tuple[float, float]:
        """Returns the limits between which the middle share of the resamples lies.

        Both are NaN without objects.
        """
        tail, means = (1 - share) / 2, self._known(metric)
        if not len(means):
            return math.nan, math.nan
        low, high = np.quantile(means, [tail, 1 - tail]).tolist()
        return low, high

    def deviation(self, metric: VocMetric) -> float:
        """Returns the standard deviation of the resamples; NaN if fewer than two have objects."""
        return _deviation(self._known(metric))

    def class_deviation(self, metric: VocMetric, name: str) -> float:
        """Returns the standard deviation of a class; NaN if fewer than two resamples have it."""
        precisions = self.classes[metric][name]
        return _deviation(precisions[~np.isnan(precisions)])

    def _known(self, metric: VocMetric) -> Float64[np.ndarray, " r"]:
        means = self.means[metric]
        return np.asarray(means[~np.isnan(means)])


def _deviation(values: Float64[np.ndarray, " r"]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def bootstrap(
    verdicts: Mapping[str, Verdicts],
    objects: Mapping[str, ClassObjects],
    num_images: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Spread:
    """Returns the average precisions of resampled images.

    Args:
        verdicts: The verdicts on the detections of each class, from `voc.judge_classes`.
        objects: The objects of the same classes.
        num_images: Number of images I in the image set, at least 1.
        seed: Seed of the resamples. The first resamples do not depend on their number.
        resamples: Number of resamples R.
    """
    rng = stream(seed, "bootstrap")
    parts = []
    for start in range(0, resamples, _AT_A_TIME):
        count = min(_AT_A_TIME, resamples - start)
        drawn = rng.integers(num_images, size=(count, num_images))
        flat = drawn + num_images * np.arange(count)[:, None]
        weights = np.bincount(flat.ravel(), minlength=count * num_images)
        parts.append(_by_class(verdicts, objects, weights.reshape(count, num_images)))
    found = np.concatenate(parts, axis=2)
    known = (~np.isnan(found)).sum(axis=0)
    sums = np.where(np.isnan(found), 0, found).sum(axis=0)
    means = np.divide(sums, known, out=np.full_like(sums, np.nan), where=known > 0)
    metrics: tuple[VocMetric, ...] = ("voc07", "voc12")
    return Spread(
        {metric: means[place] for place, metric in enumerate(metrics)},
        {
            metric: dict(zip(objects, found[:, place], strict=True))
            for place, metric in enumerate(metrics)
        },
    )


def _by_class(
    verdicts: Mapping[str, Verdicts],
    objects: Mapping[str, ClassObjects],
    weights: Int64[np.ndarray, "R I"],
) -> Float64[np.ndarray, "C 2 R"]:
    """Returns the average precisions of the classes by both metrics; NaN without objects.

    Args:
        verdicts: The verdicts by class.
        objects: The objects by class.
        weights: How often each image is drawn in each resample.
    """
    by_image = np.ascontiguousarray(weights.T, np.int32)
    found = []
    for name, of_class in objects.items():
        counts = np.bincount(of_class.images[~of_class.difficult], minlength=weights.shape[1])
        num_objects = weights @ counts
        precisions = _average_precisions(verdicts[name], by_image, np.maximum(num_objects, 1))
        found.append(np.where(num_objects > 0, precisions, np.nan))
    return np.stack(found)


def _average_precisions(
    verdicts: Verdicts, by_image: Int32[np.ndarray, "I R"], num_objects: Int64[np.ndarray, " R"]
) -> Float64[np.ndarray, "2 R"]:
    """Returns the average precisions of a class.

    The best precision at a recall is always that of a right detection, so only these K are
    computed. A right detection whose image is not drawn has the recall of the one before it and a
    lower precision, so it changes nothing.

    Args:
        verdicts: The verdicts on the detections of the class.
        by_image: int32 (I, R), how often each image is drawn in each resample.
        num_objects: Number of objects in each resample, at least 1.
    """
    images = verdicts.images[verdicts.counts]
    places = np.flatnonzero(verdicts.right[verdicts.counts])
    if not len(places):
        return np.zeros((2, len(num_objects)))
    # Row k sums the detections after right detection k - 1, up to k.
    starts = np.append(0, places[:-1] + 1)
    between = np.add.reduceat(by_image[images[: places[-1] + 1]], starts, axis=0)
    total = between.cumsum(axis=0, dtype=np.float64)
    right = by_image[images[places]].astype(np.float64)
    num_right = right.cumsum(axis=0)
    precision = np.divide(num_right, total, out=np.zeros_like(total), where=total > 0)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    area = (right * envelope).sum(axis=0) / num_objects
    recall = num_right / num_objects
    padded = np.concatenate([envelope, np.zeros((1, len(num_objects)))])
    columns = np.arange(len(num_objects))
    first = [np.count_nonzero(recall < threshold, axis=0) for threshold in RECALL_THRESHOLDS]
    points = np.mean([padded[place, columns] for place in first], axis=0)
    return np.stack([points, area])
