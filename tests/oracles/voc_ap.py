"""The rules of VOCevaldet.m and VOCap.m, one detection and one object at a time.

Slow and without NumPy on purpose: it is read beside the devkit, not run on a dataset.
"""

from collections.abc import Callable
from typing import NamedTuple

Box = tuple[float, float, float, float]


class Detection(NamedTuple):
    image: int
    score: float
    box: Box


class Object(NamedTuple):
    image: int
    box: Box
    difficult: bool


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of boxes that include the pixels they end at; 0 when disjoint."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    of_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    of_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (of_a + of_b - width * height)


def verdicts(
    detections: list[Detection], objects: list[Object], threshold: float = 0.5
) -> list[tuple[float, str]]:
    """The score and one of right, wrong and ignored for every detection, by descending score."""
    found = [False] * len(objects)
    result = []
    # Python's sort, like MATLAB's, leaves equal scores in their order.
    for detection in sorted(detections, key=lambda d: -d.score):
        best, best_overlap = None, 0.0
        for number, item in enumerate(objects):
            if item.image == detection.image:
                value = overlap(detection.box, item.box)
                if value > best_overlap:
                    best, best_overlap = number, value
        if best is None or best_overlap < threshold:
            verdict = "wrong"
        elif objects[best].difficult:
            verdict = "ignored"
        elif found[best]:
            verdict = "wrong"
        else:
            found[best] = True
            verdict = "right"
        result.append((detection.score, verdict))
    return result


def curve(
    detections: list[Detection], objects: list[Object]
) -> tuple[list[float], list[float | None]]:
    """Recall and precision after every detection; None is the devkit's 0/0."""
    total = sum(not item.difficult for item in objects)
    right = wrong = 0
    recall, precision = list[float](), list[float | None]()
    for _, verdict in verdicts(detections, objects):
        right += verdict == "right"
        wrong += verdict == "wrong"
        recall.append(right / total)
        precision.append(right / (right + wrong) if right + wrong else None)
    return recall, precision


def matlab_colon(step: int) -> float:
    """Element `step` of MATLAB's 0:0.1:1, which is counted from the nearer end."""
    return step * 0.1 if step <= 5 else 1 - (10 - step) * 0.1


def octave_colon(step: int) -> float:
    """Element `step` of Octave's 0:0.1:1."""
    return step * 0.1


def average_precision_11_point(
    recall: list[float],
    precision: list[float | None],
    threshold: Callable[[int], float] = matlab_colon,
) -> float:
    """VOC2007: max() of MATLAB skips 0/0."""
    result = 0.0
    for step in range(11):
        reached = [
            p
            for r, p in zip(recall, precision, strict=True)
            if r >= threshold(step) and p is not None
        ]
        result += max(reached, default=0.0) / 11
    return result


def average_precision_area(recall: list[float], precision: list[float | None]) -> float:
    """VOC2012: pad, make non-increasing from the right, sum where the recall changes."""
    levels = [0.0, *recall, 1.0]
    heights = [0.0, *(0.0 if p is None else p for p in precision), 0.0]
    for place in range(len(heights) - 2, -1, -1):
        heights[place] = max(heights[place], heights[place + 1])
    result = 0.0
    for place in range(1, len(levels)):
        if levels[place] != levels[place - 1]:
            result += (levels[place] - levels[place - 1]) * heights[place]
    return result
