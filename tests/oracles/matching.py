"""Caffe's MatchBBox and EncodeBBox (`bbox_util.cpp:355-410,584-720`), one pair at a time.

Slow and literal on purpose. The overlaps are given, so that both sides see the same ties.
"""

import math

Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 for boxes that do not overlap (`bbox_util.cpp:274-294`)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    of_a = (a[2] - a[0]) * (a[3] - a[1])
    of_b = (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (of_a + of_b - width * height)


def match(overlaps: list[list[float]], num_boxes: int, threshold: float = 0.5) -> list[int]:
    """The object of every default box, -1 for none; `overlaps` is indexed by object, then box."""
    overlapping = [
        (box, item, overlaps[item][box])
        for box in range(num_boxes)
        for item in range(len(overlaps))
        if overlaps[item][box] > 1e-6
    ]
    matched = [-1] * num_boxes
    pool = list(range(len(overlaps)))
    while pool:
        best_box, best_item, best = -1, -1, -1.0
        for box, item, value in overlapping:
            if matched[box] == -1 and item in pool and value > best:
                best_box, best_item, best = box, item, value
        if best_box == -1:
            break
        matched[best_box] = best_item
        pool.remove(best_item)

    bipartite = list(matched)
    best_of_box = [-1.0] * num_boxes
    for box, item, value in overlapping:
        if bipartite[box] == -1 and value >= threshold and value > best_of_box[box]:
            matched[box], best_of_box[box] = item, value
    return matched


def encode(box: Box, default: Box) -> Box:
    """The offsets from a default box to a box, both xyxy, over the variances."""
    width, height = default[2] - default[0], default[3] - default[1]
    dx = (box[0] + box[2]) / 2 - (default[0] + default[2]) / 2
    dy = (box[1] + box[3]) / 2 - (default[1] + default[3]) / 2
    return (
        dx / width / 0.1,
        dy / height / 0.1,
        math.log((box[2] - box[0]) / width) / 0.2,
        math.log((box[3] - box[1]) / height) / 0.2,
    )
