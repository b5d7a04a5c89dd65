"""Turns the output of a network into detections.

The steps are those of `detection_output_layer.cpp` and `bbox_util.cpp:1743-1969`. After a softmax,
each class keeps its 400 best scores above 0.01 and undergoes greedy non-maximum suppression at an
IoU of 0.45. Then the 200 best detections of the image remain. Caffe never clips the boxes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox import boxes as bx
from multibox.ssd.coding import CAFFE_VARIANCES, Variances, decode
from multibox.structures import Detections, Output

# Candidates of each class in the first attempt. Fewer candidates have far fewer pairs.
_FIRST_PER_CLASS = 64


class DetectionSettings(NamedTuple):
    """The thresholds of `ssd_pascal.py:392-408`.

    Attributes:
        score_threshold: Only higher scores become detections.
        per_class: Maximum number of candidates of a class before suppression.
        iou_threshold: A box is suppressed if its IoU with a better one is larger.
        per_image: Maximum number of detections of an image.
        clip: Whether boxes are clipped to the image before suppression, as in torchvision
            (`SSD.postprocess_detections`).
    """

    score_threshold: float = 0.01
    per_class: int = 400
    iou_threshold: float = 0.45
    per_image: int = 200
    clip: bool = False


def detect(
    output: Output,
    default_boxes: Float[Tensor, "K 4"],
    settings: DetectionSettings = DetectionSettings(),  # noqa: B008  # immutable
    variances: Variances = CAFFE_VARIANCES,
) -> list[Detections]:
    """Returns the detections of each image by descending score, then by class and default box.

    Args:
        output: The output of a network for B images.
        default_boxes: xyxy in the unit frame.
        settings: The thresholds.
        variances: The variances of the network.
    """
    scores = output.logits.float().softmax(dim=2)[..., 1:]
    batch, _, num_classes = scores.shape
    image, box, label = _candidates(scores, settings).nonzero(as_tuple=True)
    score = scores[image, box, label]
    group = image * num_classes + label
    best = _best_of_groups(group, score, settings.per_class)
    image, label, box, score, group = (x[best] for x in (image, label, box, score, group))
    boxes = decode(output.offsets.float()[image, box], default_boxes[box], variances)
    if settings.clip:
        boxes = boxes.clamp(0, 1)
    kept = _survivors(boxes, score, group, image, batch, settings)
    image, label, score, boxes = image[kept], label[kept], score[kept], boxes[kept]
    order = _best_of_groups(image, score, settings.per_image)
    counts = torch.bincount(image[order], minlength=batch).tolist()
    parts = (torch.split(x[order], counts) for x in (boxes, score, label))
    return [Detections(*part) for part in zip(*parts, strict=True)]


def _candidates(
    scores: Float[Tensor, "B K C"], settings: DetectionSettings
) -> Bool[Tensor, "B K C"]:
    """Returns a mask of the best scores of each class, including ties with the last of them."""
    above = scores > settings.score_threshold
    # Counting all candidates is five times as fast as counting those of each class.
    most = settings.per_class
    if int(above.count_nonzero()) <= most or int(above.sum(dim=1).max()) <= most:
        return above
    by_class = scores.transpose(1, 2).contiguous()
    best = by_class.topk(settings.per_class, dim=2, sorted=False).values
    return above & (scores >= best.amin(dim=2).unsqueeze(1))


def _survivors(
    boxes: Float[Tensor, "N 4"],
    score: Float[Tensor, " N"],
    group: Int64[Tensor, " N"],
    image: Int64[Tensor, " N"],
    batch: int,
    settings: DetectionSettings,
) -> Bool[Tensor, " N"]:
    """Returns a mask of candidates that remain after suppression, at least the best of each image.

    Only better candidates can suppress a candidate. So it first considers the few best of each
    class. If enough of these remain that are better than all other candidates, it is done.

    Args:
        boxes: xyxy.
        score: Scores, descending in each group.
        group: Index of image and class, ascending.
        image: Index of the image.
        batch: Number of images.
        settings: The thresholds.
    """
    rank = _rank_in_group(group)
    kept = torch.zeros_like(rank, dtype=torch.bool)
    for width in (_FIRST_PER_CLASS, settings.per_class):
        some = rank < width
        kept[some] = non_maximum_suppression(boxes[some], group[some], settings.iou_threshold)
        aside = score.new_zeros(batch).scatter_reduce_(0, image[~some], score[~some], "amax")
        sure = torch.bincount(image[kept & (score > aside[image])], minlength=batch)
        if bool(((aside == 0) | (sure >= settings.per_image)).all()):
            break
    return kept


def _best_of_groups(
    group: Int64[Tensor, " N"], score: Float[Tensor, " N"], count: int
) -> Int64[Tensor, " n"]:
    """Returns the indices of the best of each group, sorted by group, then by descending score."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    best: Tensor = order[_rank_in_group(group[order]) < count]
    return best


def _rank_in_group(group: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """Returns the position of each element within its group. `group` must ascend."""
    if group.numel() == 0:
        return group
    sizes = torch.unique_consecutive(group, return_counts=True)[1]
    starts: Tensor = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(group.numel(), device=group.device) - starts


def non_maximum_suppression(
    boxes: Float[Tensor, "N 4"], group: Int64[Tensor, " N"], iou_threshold: float
) -> Bool[Tensor, " N"]:
    """Returns a mask of the boxes that remain after non-maximum suppression within each group.

    It works on all groups at once, as rows of a padded table. A box is suppressed by any better box
    that remains. It starts with all boxes and applies this rule until nothing changes. The result
    is that of greedy suppression, because after n rounds the n best of each group are final.

    Args:
        boxes: xyxy, each group in order of descending score.
        group: The group of each box, ascending.
        iou_threshold: A box is suppressed if its IoU with a better one is larger.
    """
    if boxes.shape[0] == 0:
        return torch.zeros(0, dtype=torch.bool, device=boxes.device)
    row = torch.unique_consecutive(group, return_inverse=True)[1]
    column = _rank_in_group(group)
    rows, columns = int(row[-1]) + 1, int(column.max()) + 1
    table = boxes.new_zeros(rows, columns, 4)
    table[row, column] = boxes
    overlap = bx.pairwise_iou(table, table) > iou_threshold
    suppresses = overlap.triu(diagonal=1).to(torch.float32)
    keep = torch.ones(rows, 1, columns, device=boxes.device)
    for _ in range(columns):
        settled = (keep @ suppresses == 0).to(torch.float32)
        if torch.equal(settled, keep):
            break
        keep = settled
    return keep[row, 0, column] > 0
