"""Caffe's DetectionOutput (`detection_output_layer.cpp`, `bbox_util.cpp:1743-1969`), by loops.

Slow and literal on purpose. The arithmetic on boxes is float32, so that both sides see the same
overlaps; scores are given.
"""

import math
from typing import NamedTuple

import numpy as np


class Detection(NamedTuple):
    score: float
    label: int
    box: int


def decode(offsets: list[float], default: list[float]) -> list[float]:
    """The box, xyxy, that offsets over the variances point to from a default box."""
    width, height = default[2] - default[0], default[3] - default[1]
    x = (default[0] + default[2]) / 2 + 0.1 * offsets[0] * width
    y = (default[1] + default[3]) / 2 + 0.1 * offsets[1] * height
    w, h = math.exp(0.2 * offsets[2]) * width, math.exp(0.2 * offsets[3]) * height
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Intersection over union of two float32 boxes."""
    zero = np.float32(0)
    width = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    of_both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union = of_both - width * height
    return width * height / union if union > 0 else zero


def suppress(boxes: np.ndarray, candidates: list[int], threshold: float) -> list[int]:
    """The candidates, best first, that overlap no better remaining one by more than this."""
    kept: list[int] = []
    for box in candidates:
        if all(overlap(boxes[box], boxes[better]) <= np.float32(threshold) for better in kept):
            kept.append(box)
    return kept


def detect(
    scores: np.ndarray,
    boxes: np.ndarray,
    score_threshold: float,
    per_class: int,
    iou_threshold: float,
    per_image: int,
) -> list[Detection]:
    """The detections of one image, best first; `scores` is (K, C), without the background."""
    found: list[Detection] = []
    for label in range(scores.shape[1]):
        above = [k for k in range(len(boxes)) if scores[k, label] > np.float32(score_threshold)]
        candidates = sorted(above, key=lambda k: -scores[k, label])[:per_class]
        for box in suppress(boxes, candidates, iou_threshold):
            found.append(Detection(scores[box, label], label, box))
    return sorted(found, key=lambda detection: -detection.score)[:per_image]
