"""Other losses than SSD's own, by loops in float64, as their papers write them."""

import math

from oracles.loss import cross_entropy

Box = list[float]


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> tuple[float, float]:
    """Intersection and union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height, area(a) + area(b) - width * height


def iou(a: Box, b: Box) -> float:
    intersection, union = overlap(a, b)
    return intersection / union


def hull(a: Box, b: Box) -> Box:
    """The smallest box that contains both."""
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def giou(a: Box, b: Box) -> float:
    """Rezatofighi et al. 2019, algorithm 1."""
    _, union = overlap(a, b)
    around = area(hull(a, b))
    return iou(a, b) - (around - union) / around


def ciou(a: Box, b: Box) -> float:
    """Zheng et al. 2020, equations 7 to 11: IoU - distance² / diagonal² - alpha v."""
    around = hull(a, b)
    diagonal = (around[2] - around[0]) ** 2 + (around[3] - around[1]) ** 2
    distance = sum(((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2) ** 2 for i in (0, 1))
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou(a, b) + v) if v else 0.0
    return iou(a, b) - distance / diagonal - alpha * v


def focal(logits: list[float], target: int) -> float:
    """Lin et al. 2017, equation 5, with gamma 2, and alpha 0.25 for objects."""
    probability = math.exp(-cross_entropy(logits, target))
    alpha = 0.25 if target > 0 else 0.75
    return -alpha * (1 - probability) ** 2 * math.log(probability)


def smoothed(logits: list[float], target: int, epsilon: float) -> float:
    """Szegedy et al. 2016, section 7: the target has 1 - epsilon more than its even share."""
    even = sum(cross_entropy(logits, other) for other in range(len(logits))) / len(logits)
    return (1 - epsilon) * cross_entropy(logits, target) + epsilon * even


def isr_p(
    overlaps: list[float], labels: list[int], objects: list[int], losses: list[float]
) -> list[float]:
    """Cao et al. 2020, section 4.1, as mmdetection's PISASSDHead with k = 2 and bias = 0.

    Args:
        overlaps: IoU of each predicted box with its object.
        labels: The class of each.
        objects: The object of each.
        losses: The class loss of each.
    """
    most = max(labels.count(label) for label in labels)
    weights = [0.0] * len(labels)
    for label in set(labels):
        members = [i for i, other in enumerate(labels) if other == label]
        value = {}
        for item in {objects[i] for i in members}:
            group = sorted((i for i in members if objects[i] == item), key=lambda i: -overlaps[i])
            for rank, i in enumerate(group):
                value[i] = overlaps[i] + most - rank
        for rank, i in enumerate(sorted(members, key=lambda i: -value[i])):
            weights[i] = ((most - rank) / most) ** 2
    before = sum(losses)
    after = sum(loss * weight for loss, weight in zip(losses, weights, strict=True))
    return [weight * before / after for weight in weights]


def carl(scores: list[float], box_losses: list[float]) -> float:
    """Cao et al. 2020, section 4.2, as mmdetection's, with k = 1 and bias = 0.2; not divided."""
    weights = [0.2 + 0.8 * score for score in scores]
    ratio = len(scores) / sum(weights)
    return sum(weight * ratio * loss for weight, loss in zip(weights, box_losses, strict=True))
