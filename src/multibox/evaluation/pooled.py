"""The detections and the objects of all classes in one table, for analyses across classes."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from multibox.evaluation.pairs import of_the_same_image, overlaps
from multibox.evaluation.voc import NO_DETECTIONS, ClassDetections, ClassObjects

_AT_A_TIME = 1 << 14


class PooledDetections(NamedTuple):
    """The detections of all classes, sorted by image, then by descending score.

    Equal scores keep the order of the classes, then that of their `ClassDetections`.

    Attributes:
        classes: int64 (N,), the class, 0..C-1.
        places: int64 (N,), the index in the `ClassDetections` of the class.
        images: int64 (N,), the index of the image in the image set.
        scores: float64 (N,).
        boxes_px: float64 (N, 4), xyxy.
    """

    classes: Int64[np.ndarray, " N"]
    places: Int64[np.ndarray, " N"]
    images: Int64[np.ndarray, " N"]
    scores: Float64[np.ndarray, " N"]
    boxes_px: Float64[np.ndarray, "N 4"]

    def take(self, chosen: Int64[np.ndarray, " n"] | Bool[np.ndarray, " N"]) -> "PooledDetections":
        """Returns some of the detections."""
        return PooledDetections(*(column[chosen] for column in self))


class PooledObjects(NamedTuple):
    """The objects of all classes, in the order of the classes.

    Attributes:
        classes: int64 (G,), the class, 0..C-1.
        places: int64 (G,), the index in the `ClassObjects` of the class.
        images: int64 (G,), the index of the image in the image set.
        difficult: bool (G,).
        boxes_px: float64 (G, 4), xyxy.
    """

    classes: Int64[np.ndarray, " G"]
    places: Int64[np.ndarray, " G"]
    images: Int64[np.ndarray, " G"]
    difficult: Bool[np.ndarray, " G"]
    boxes_px: Float64[np.ndarray, "G 4"]


class Pairs(NamedTuple):
    """The P pairs of a detection and an object of the same image that overlap.

    They are sorted by detection, then by descending overlap, then by object.

    Attributes:
        detection: int64 (P,), the index of the detection.
        object: int64 (P,), the index of the object.
        overlap: float64 (P,), intersection over union, above 0.
    """

    detection: Int64[np.ndarray, " P"]
    object: Int64[np.ndarray, " P"]
    overlap: Float64[np.ndarray, " P"]

    def take(self, chosen: Bool[np.ndarray, " P"]) -> "Pairs":
        """Returns some of the pairs."""
        return Pairs(*(column[chosen] for column in self))


def pool_detections(
    detections: Mapping[str, ClassDetections],
    classes: Mapping[str, object],
    *,
    score_threshold: float = 0.0,
) -> PooledDetections:
    """Returns the detections of all classes with at least a certain score.

    Args:
        detections: Detections by class. A class may be absent.
        classes: All classes, in order.
        score_threshold: Lowest score.
    """
    columns = []
    for label, name in enumerate(classes):
        found = detections.get(name, NO_DETECTIONS)
        places = np.flatnonzero(found.scores >= score_threshold)
        labels = np.full(len(places), label)
        columns.append((labels, places, *(column[places] for column in found)))
    labels, places, images, scores, boxes_px = map(np.concatenate, zip(*columns, strict=True))
    pooled = PooledDetections(labels, places, images, scores, boxes_px)
    return pooled.take(np.lexsort((-scores, images)))


def pool_objects(objects: Mapping[str, ClassObjects]) -> PooledObjects:
    """Returns the objects of all classes.

    Args:
        objects: Objects by class, at least one class.
    """
    columns = [
        (np.full(len(o.images), label), np.arange(len(o.images)), o.images, o.difficult, o.boxes_px)
        for label, o in enumerate(objects.values())
    ]
    return PooledObjects(*map(np.concatenate, zip(*columns, strict=True)))


def overlapping_pairs(
    detections: PooledDetections, objects: PooledObjects, *, last_pixels: bool
) -> Pairs:
    """Returns the pairs of all classes.

    Args:
        detections: The detections.
        objects: The objects.
        last_pixels: Whether a box includes its last pixels, as in the VOC devkit.
    """
    parts = []
    # In parts, because only a few of the pairs overlap.
    for start in range(0, max(1, len(detections.images)), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        detection, item = of_the_same_image(detections.images[part], objects.images)
        overlap = overlaps(
            detections.boxes_px[part][detection], objects.boxes_px[item], last_pixels=last_pixels
        )
        near = np.flatnonzero(overlap > 0)
        near = near[np.lexsort((-overlap[near], detection[near]))]
        parts.append((detection[near] + start, item[near], overlap[near]))
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))
