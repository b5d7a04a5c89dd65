"""Caffe's MultiBoxLoss (`multibox_loss_layer.cpp:146-253`, `bbox_util.cpp:838-1030`), by loops.

Slow and literal on purpose; all in float64.
"""

import math


def cross_entropy(logits: list[float], target: int) -> float:
    """-ln of the target's softmax probability."""
    highest = max(logits)
    total = sum(math.exp(x - highest) for x in logits)
    return math.log(total) + highest - logits[target]


def smooth_l1(distance: float) -> float:
    """Quadratic to a distance of 1, linear beyond."""
    return 0.5 * distance**2 if abs(distance) < 1 else abs(distance) - 0.5


def hard_negatives(logits: list[list[float]], classes: list[int]) -> list[int]:
    """The unmatched boxes of one image that count: the least likely background, 3 per match."""
    ranked = [
        (-cross_entropy(logits[box], 0), box) for box in range(len(classes)) if classes[box] == 0
    ]
    positives = len(classes) - len(ranked)
    return [box for _, box in sorted(ranked)[: 3 * positives]]


def multibox_loss(
    logits: list[list[list[float]]],
    offsets: list[list[list[float]]],
    classes: list[list[int]],
    targets: list[list[list[float]]],
) -> tuple[float, float]:
    """Confidence and localization loss of a batch, over its number of matched boxes."""
    confidence, localization, positives = 0.0, 0.0, 0
    for image, image_classes in enumerate(classes):
        for box, label in enumerate(image_classes):
            if label > 0:
                positives += 1
                confidence += cross_entropy(logits[image][box], label)
                for axis in range(4):
                    distance = offsets[image][box][axis] - targets[image][box][axis]
                    localization += smooth_l1(distance)
        for box in hard_negatives(logits[image], image_classes):
            confidence += cross_entropy(logits[image][box], 0)
    return confidence / max(1, positives), localization / max(1, positives)
