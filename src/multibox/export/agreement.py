"""Compares the detections of an exported file with those of the network."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from multibox.boxes import pairwise_iou
from multibox.structures import Detections


class Difference(NamedTuple):
    """How two lists of detections differ.

    Attributes:
        box_px: Largest difference of a box's side, in pixels.
        score: Largest difference of a score.
        compared: Number of detections with a counterpart.
        alone: Number of detections in one list only.
    """

    box_px: float = 0.0
    score: float = 0.0
    compared: int = 0
    alone: int = 0


def largest(differences: Iterable[Difference]) -> Difference:
    """Returns the largest differences, and the sums of the numbers."""
    rows = [*differences] or [Difference()]
    return Difference(
        max(row.box_px for row in rows),
        max(row.score for row in rows),
        sum(row.compared for row in rows),
        sum(row.alone for row in rows),
    )


def compare(
    ours: Detections, theirs: Detections, size: tuple[int, int], *, margin: float, min_iou: float
) -> Difference:
    """Compares two lists of detections in one image.

    A counterpart has the same label and an IoU of at least `min_iou`. A detection near the lowest
    score of a list may be missing in the other, so those within `margin` of it do not count as
    alone.

    Args:
        ours: Detections with boxes in the unit frame.
        theirs: The same.
        size: (height, width) of the image in pixels.
        margin: A score.
        min_iou: 0.5 for the same object. Close to 1 for the same default box: if two scores differ
            by rounding only, suppression may keep the other box.
    """
    height, width = size
    sides = torch.tensor([width, height, width, height])
    a, b = (each.boxes.clamp(0, 1) * sides for each in (ours, theirs))
    lowest = max(
        (float(each.scores.min()) for each in (ours, theirs) if len(each.scores)), default=0
    )
    iou = pairwise_iou(a, b) * (ours.labels.unsqueeze(1) == theirs.labels)
    rows, columns = _pairs(iou, min_iou)
    boxes, scores = a[rows] - b[columns], ours.scores[rows] - theirs.scores[columns]
    alone = sum(
        int((each.scores >= lowest + margin).sum() - (each.scores[pair] >= lowest + margin).sum())
        for each, pair in ((ours, rows), (theirs, columns))
    )
    if not len(rows):
        return Difference(alone=alone)
    return Difference(float(boxes.abs().max()), float(scores.abs().max()), len(rows), alone)


def _pairs(iou: Tensor, min_iou: float) -> tuple[Tensor, Tensor]:
    """Returns the indices of the pairs in which each is the best of the other."""
    none = torch.zeros(0, dtype=torch.int64)
    if 0 in iou.shape:
        return none, none
    best, column = iou.max(dim=1)
    rows = torch.arange(len(column))
    mutual = (iou.argmax(dim=0)[column] == rows) & (best >= min_iou)
    return rows[mutual], column[mutual]
