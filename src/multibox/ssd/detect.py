"""From a network's output to detections (`detection_output_layer.cpp`, `bbox_util.cpp:1743-1969`).

Softmax; per class: scores above 0.01, the 400 best, greedy non-maximum suppression at IoU 0.45;
then the 200 best of the image. Caffe's boxes are not clipped, neither before suppression nor after.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox import boxes as bx
from multibox.ssd.coding import CAFFE_VARIANCES, Variances, decode
from multibox.structures import Detections, Output

# Of each class, for a first attempt: a sixth of the pairs' work is 1/36.
_FIRST_PER_CLASS = 64


class DetectionSettings(NamedTuple):
    """The thresholds of `ssd_pascal.py:392-408`.

    Attributes:
        score_threshold: Scores must be above it.
        per_class: How many candidates a class has at the most, before suppression.
        iou_threshold: A box that overlaps a better one by more than this is suppressed.
        per_image: How many detections an image has at the most.
        clip: Boxes are clipped to the image before suppression, as torchvision does
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
    """Returns the detections of each image, by descending score; ties in order of class and box.

    Args:
        output: The network's, of B images.
        default_boxes: xyxy in the unit frame.
        settings: The thresholds.
        variances: The network's.
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
    """Returns which scores may be among their class's best: all that are, and equal ones."""
    above = scores > settings.score_threshold
    # The classes' counts take five times as long as that of all.
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
    """Returns which candidates remain after suppression, as far as an image's best go.

    Whether one remains depends on better ones alone. So a few of each class are worked on first,
    and that is all where enough of them remain that beat every candidate left aside.

    Args:
        boxes: xyxy.
        score: Descending in each group.
        group: Image and class, ascending.
        image: The image alone.
        batch: How many images there are.
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
    """Returns the places of each group's best, groups ascending, scores descending, ties stable."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    best: Tensor = order[_rank_in_group(group[order]) < count]
    return best


def _rank_in_group(group: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """Returns the place of each element within its run of equal numbers; `group` ascends."""
    if group.numel() == 0:
        return group
    sizes = torch.unique_consecutive(group, return_counts=True)[1]
    starts: Tensor = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.arange(group.numel(), device=group.device) - starts


def non_maximum_suppression(
    boxes: Float[Tensor, "N 4"], group: Int64[Tensor, " N"], iou_threshold: float
) -> Bool[Tensor, " N"]:
    """Returns which boxes remain when, in each group, better ones suppress those they overlap.

    All groups are worked on at once, as rows of a padded table. Within a group a box is suppressed
    by any *remaining* better box; repeating that rule from "all remain" until nothing changes
    gives the greedy result, because after n rounds the n best of each group are settled.

    Args:
        boxes: xyxy, each group in order of descending score.
        group: The group of each box, ascending.
        iou_threshold: Overlap beyond which the lesser box goes.
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
