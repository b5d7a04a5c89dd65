"""The average precision of COCO, over ten thresholds of overlap, through faster-coco-eval.

The library equals pycocotools wherever we compared them (`docs/evaluation.md`).

It takes the same detections and objects as `voc.py`. COCO knows no difficult objects; they become
crowds, the only objects that its evaluation ignores (`cocoeval.py` overwrites `ignore` with
`iscrowd`). As in VOC, any number of detections may hit one without counting; other than in VOC, it
suffices that half of the detection, rather than of the union, lies in it.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float64, Int64

from multibox.evaluation.voc import (
    NO_DETECTIONS,
    ClassDetections,
    ClassObjects,
    require_ground_truth,
)

Annotation = dict[str, Any]

# The places of the overlap thresholds 0.5 and 0.75 among 0.5, 0.55, ... 0.95.
IOU_50, IOU_75 = 0, 5
MAX_DETECTIONS = 100


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
    """AP@[.5:.95] of objects of at most 32 x 32 pixels."""

    medium: float
    """AP@[.5:.95] of objects from 32 x 32 to 96 x 96 pixels."""

    large: float
    """AP@[.5:.95] of objects of at least 96 x 96 pixels."""

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
    names = list(objects)
    truth = [_truth(place, objects[name]) for place, name in enumerate(names)]
    found = [_found(place, detections.get(name, NO_DETECTIONS)) for place, name in enumerate(names)]
    ground_truth, results = _dataset(truth, len(names)), _dataset(found, len(names))
    evaluation = COCOeval_faster(ground_truth, results, iouType="bbox")
    evaluation.params.imgIds = sorted({*ground_truth.imgs, *results.imgs})
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return _summary(evaluation.eval["precision"][..., 0], names)


def _truth(category: int, objects: ClassObjects) -> list[Annotation]:
    annotations = _annotations(category, objects.images, objects.boxes_px)
    for annotation, difficult in zip(annotations, objects.difficult.tolist(), strict=True):
        annotation["iscrowd"] = int(difficult)
    return annotations


def _found(category: int, detections: ClassDetections) -> list[Annotation]:
    annotations = _annotations(category, detections.images, detections.boxes_px)
    for annotation, score in zip(annotations, detections.scores.tolist(), strict=True):
        annotation["score"] = score
    return annotations


def _annotations(
    category: int, images: Int64[np.ndarray, " N"], boxes_px: Float64[np.ndarray, "N 4"]
) -> list[Annotation]:
    """What objects and detections have in common, in COCO's form: boxes (x, y, width, height)."""
    low, size = boxes_px[:, :2], boxes_px[:, 2:] - boxes_px[:, :2]
    columns = zip(
        images.tolist(),
        np.concatenate([low, size], axis=1).tolist(),
        size.prod(axis=1).tolist(),
        strict=True,
    )
    return [
        {"image_id": image, "category_id": category, "bbox": box, "area": area}
        for image, box, area in columns
    ]


def _dataset(by_class: list[list[Annotation]], num_classes: int) -> COCO:
    """The library's index of annotations, numbered from 1: it takes 0 for unmatched."""
    annotations = list(itertools.chain.from_iterable(by_class))
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    images = sorted({annotation["image_id"] for annotation in annotations})
    return COCO(
        {
            "images": [{"id": image} for image in images],
            "categories": [{"id": category} for category in range(num_classes)],
            "annotations": annotations,
        }
    )


def _summary(precision: Float64[np.ndarray, "T R C A"], names: list[str]) -> CocoResult:
    """The means over precisions by threshold, recall, class and area (all, small, ..., large)."""
    return CocoResult(
        mean=_mean(precision[..., 0]),
        ap50=_mean(precision[IOU_50, ..., 0]),
        ap75=_mean(precision[IOU_75, ..., 0]),
        small=_mean(precision[..., 1]),
        medium=_mean(precision[..., 2]),
        large=_mean(precision[..., 3]),
        by_class={name: _mean(precision[:, :, place, 0]) for place, name in enumerate(names)},
    )


def _mean(precision: Float64[np.ndarray, "*any"]) -> float:
    """The mean over what there are objects for; the rest is marked by -1."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan
