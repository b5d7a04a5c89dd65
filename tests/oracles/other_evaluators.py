"""What decides in evaluators that are said to compute the devkit's average precision but do not.

Each is written after its source (repository, file and version are in `docs/evaluation.md`) and
keeps the rules by which it differs: slow, one class at a time, for a handful of boxes.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from oracles import coco_ap, voc_ap
from oracles.voc_ap import Box, Detection, Object

Evaluator = Callable[[list[Detection], list[Object], str], float]
Verdicts = list[str]


def judge(
    detections: list[Detection],
    objects: list[Object],
    *,
    overlap: Callable[[Box, Box], float] = voc_ap.overlap,
    is_hit: Callable[[float], bool] = lambda value: value >= 0.5,
) -> Verdicts:
    """right, wrong or ignored for every detection, in the order given; the devkit's otherwise."""
    found, verdicts = set[int](), Verdicts()
    for detection in detections:
        values = [
            (overlap(detection.box, item.box), -place, item)
            for place, item in enumerate(objects)
            if item.image == detection.image
        ]
        value, place, item = max(values, default=(0.0, 1, None))
        if item is None or not is_hit(value):
            verdicts.append("wrong")
        elif item.difficult:
            verdicts.append("ignored")
        else:
            verdicts.append("wrong" if place in found else "right")
            found.add(place)
    return verdicts


def by_score(detections: list[Detection]) -> list[Detection]:
    """Highest first; equal ones in their order."""
    return sorted(detections, key=lambda detection: -detection.score)


def curve(verdicts: Verdicts, objects: list[Object]) -> tuple[list[float], list[float | None]]:
    """Recall and precision after each; None for 0/0."""
    total = sum(not item.difficult for item in objects)
    right = np.cumsum([verdict == "right" for verdict in verdicts]).tolist()
    wrong = np.cumsum([verdict == "wrong" for verdict in verdicts]).tolist()
    precision = [r / (r + w) if r + w else None for r, w in zip(right, wrong, strict=True)]
    return [r / total for r in right], precision


def area_or_points(recall: list[float], precision: list[float | None], metric: str) -> float:
    """The devkit's own last step, with the 11 points counted as in Octave and NumPy."""
    if metric == "area":
        return voc_ap.average_precision_area(recall, precision)
    return voc_ap.average_precision_11_point(recall, precision, voc_ap.octave_colon)


def octave(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """The devkit itself."""
    return area_or_points(*voc_ap.curve(detections, objects), metric)


def py_faster_rcnn(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """An overlap above a half; NumPy's maximum keeps the NaN of 0/0, which MATLAB's skips."""
    verdicts = judge(by_score(detections), objects, is_hit=lambda value: value > 0.5)
    recall, precision = curve(verdicts, objects)
    if metric == "area":
        return voc_ap.average_precision_area(recall, precision)
    known = np.array([math.nan if p is None else p for p in precision])
    reached = [known[np.array(recall) >= step * 0.1] for step in range(11)]
    return sum(float(values.max()) if values.size else 0.0 for values in reached) / 11


def ssd_pytorch(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Objects one pixel up and left of the file's, no last pixels, an overlap above a half."""
    if not detections:
        return -1.0
    moved = [item._replace(box=tuple(corner - 1 for corner in item.box)) for item in objects]
    verdicts = judge(
        by_score(detections), moved, overlap=plain_overlap, is_hit=lambda value: value > 0.5
    )
    return area_or_points(*curve(verdicts, objects), metric)


def plain_overlap(a: Box, b: Box) -> float:
    """Intersection over union of boxes that end where their last pixel begins."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    of_both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (of_both - width * height)


def caffe(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Recall in float32, compared with the float64 j / 10."""
    assert metric == "11 points"
    recall, precision = curve(judge(by_score(detections), objects), objects)
    known = [(float(np.float32(r)), p) for r, p in zip(recall, precision, strict=True) if p]
    return sum(max((p for r, p in known if r >= j / 10), default=0.0) for j in range(11)) / 11


def chainercv(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Sorts upwards and turns it round: first within each image, then all images together."""
    scores, verdicts = list[float](), Verdicts()
    for image in sorted({detection.image for detection in detections}):
        of_image = turned([d for d in detections if d.image == image])
        verdicts += judge(of_image, objects)
        scores += [detection.score for detection in of_image]
    order = np.argsort(scores, kind="stable")[::-1]
    return area_or_points(*curve([verdicts[place] for place in order], objects), metric)


def turned(detections: list[Detection]) -> list[Detection]:
    return sorted(detections, key=lambda detection: detection.score)[::-1]


def ssd_keras(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Last pixels count in the areas and not in the intersection; the area starts too late."""
    verdicts = judge(by_score(detections), objects, overlap=half_inclusive_overlap)
    return keras_average(verdicts, objects, metric)


def ssd_keras_quiet(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """With verbose=False the loop runs over the number of the array's axes, which is one."""
    first = judge(by_score(detections), objects, overlap=half_inclusive_overlap)[:1]
    return keras_average(first + ["ignored"] * (len(detections) - 1), objects, metric)


def half_inclusive_overlap(a: Box, b: Box) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    of_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    of_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (of_a + of_b - width * height)


def keras_average(verdicts: Verdicts, objects: list[Object], metric: str) -> float:
    recall, precision = curve(verdicts, objects)
    if metric == "11 points":
        return area_or_points(recall, precision, metric)
    # Every step from one recall to the next has the best precision from its left end on; the step
    # from 0 to the first recall is missing, and so is what the last recall's precision is worth.
    levels, area, best = sorted(set(recall)), 0.0, 0.0
    for left, right in reversed(list(itertools.pairwise(levels))):
        best = max([best, *(p for r, p in zip(recall, precision, strict=True) if r == left and p)])
        area += (right - left) * best
    return area


def pycocotools(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """The library itself."""
    assert metric == "area"
    summary, _ = coco_ap.average_precisions({"any": detections}, {"any": objects})
    return summary["ap50"]


def torchmetrics(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """pycocotools with recall thresholds that were float32 once."""
    assert metric == "area"
    thresholds = torch.linspace(0.0, 1.0, 101).tolist()
    summary, _ = coco_ap.average_precisions({"any": detections}, {"any": objects}, thresholds)
    return summary["ap50"]


def cartucho_2018(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Sorts the scores as the texts that they were read as."""
    assert metric == "area"
    ordered = sorted(detections, key=lambda detection: str(detection.score), reverse=True)
    return voc_ap.average_precision_area(*curve(judge(ordered, objects), objects))


def cartucho(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Divides by the number of detections that count, even where there is none yet."""
    assert metric == "area"
    verdicts = judge(by_score(detections), objects)
    right = wrong = 0
    precision = list[float | None]()
    for verdict in verdicts:
        right, wrong = right + (verdict == "right"), wrong + (verdict == "wrong")
        precision.append(float(right) / (wrong + right))
    return voc_ap.average_precision_area(curve(verdicts, objects)[0], precision)


def rafaelpadilla(detections: list[Detection], objects: list[Object], metric: str) -> float:
    """Knows no difficult objects: all count."""
    plain = [item._replace(difficult=False) for item in objects]
    return area_or_points(*curve(judge(by_score(detections), plain), plain), metric)
