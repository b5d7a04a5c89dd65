"""Other losses than SSD's own: on decoded boxes, focal, smoothed, and weighted by importance.

Published sources describe each of them; `docs/experiments.md` says which of them help.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from multibox.boxes import area, pairwise_iou
from multibox.ssd.coding import Variances, decode
from multibox.ssd.loss import hard_negatives, rows
from multibox.structures import Losses, Matches, Output

FOCAL_ALPHA = 0.25
"""Weight of matched default boxes in the focal loss; the others have 1 - 0.25."""

FOCAL_GAMMA = 2.0
"""Exponent of the focal loss."""

CARL_BIAS = 0.2
"""The weight of a box in CARL at a score of 0, before all are normalised."""

_SAME_OBJECT = 0.999
"""Targets of one object are decoded from different default boxes, so they differ by rounding."""


class Variant(NamedTuple):
    """A loss. The defaults are SSD's.

    Attributes:
        default_boxes: float32 (K, 4), xyxy in the unit frame, on the device of the outputs.
        variances: The variances of the network.
        box_loss: The loss of a matched box: smooth L1 of its offsets, or 1 - GIoU or 1 - CIoU of
            the decoded box.
        box_weight: Factor of the localization loss; alpha in SSD's paper.
        class_loss: Cross-entropy of matched boxes and hard negatives, or the focal loss of all.
        label_smoothing: Probability that cross-entropy spreads evenly over all classes, 0..1.
        pisa: Whether boxes are weighted by importance: ISR-P and CARL.
    """

    default_boxes: Tensor
    variances: Variances
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    box_weight: float = 1.0
    class_loss: Literal["softmax", "focal"] = "softmax"
    label_smoothing: float = 0.0
    pisa: bool = False


def variant_loss(
    output: Output, matches: Matches, num_positives: Float[Tensor, ""], variant: Variant
) -> Losses:
    """Returns both parts of a loss, divided by the number of positives.

    PISA (Cao et al. 2020, https://arxiv.org/abs/1904.04821) is as in mmdetection's SSD: ISR-P with
    k = 2 and bias 0 weighs the class losses of matched boxes, and CARL with k = 1 and bias 0.2 is
    added to the localization loss. The ranks are those among the boxes of this output.

    Args:
        output: The output of the network for a batch or a part of it.
        matches: The matches of the same images.
        num_positives: N of the whole batch, over all parts and processes; at least 1.
        variant: The loss.
    """
    positive = matches.classes > 0
    if variant.class_loss == "focal":
        losses = _focal_losses(output.logits.float(), matches)
        confidence, of_matches = losses.sum(), losses.gather(1, matches.boxes)
    else:
        confidence, of_matches = _softmax_losses(output, matches, variant.label_smoothing)
    own = variant.default_boxes[matches.boxes]
    offsets = rows(output.offsets, matches.boxes)
    found, wanted = (decode(each, own, variant.variances) for each in (offsets, matches.offsets))
    if variant.box_loss == "smooth_l1":
        distance = F.smooth_l1_loss(offsets, matches.offsets, reduction="none").sum(dim=2)
    else:
        distance = box_losses(found, wanted, variant.box_loss)
    localization = (distance * positive).sum()
    if variant.pisa:
        weights = importance(box_losses(found, wanted, "iou"), wanted, matches, of_matches)
        confidence = confidence + ((weights - 1) * of_matches * positive).sum()
        scores = rows(output.logits, matches.boxes).softmax(dim=2)
        scores = scores.gather(2, matches.classes.unsqueeze(2)).squeeze(2)
        weights = (CARL_BIAS + (1 - CARL_BIAS) * scores) * positive
        weights = weights * (positive.sum() / weights.sum().clamp(min=CARL_BIAS))
        localization = localization + (distance * weights).sum()
    return Losses(confidence / num_positives, variant.box_weight * localization / num_positives)


def _softmax_losses(
    output: Output, matches: Matches, smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "B P"]]:
    """Returns the sum over matched boxes and hard negatives, and the losses of matched boxes."""
    with torch.no_grad():
        background = -output.logits.float().log_softmax(dim=2)[..., 0]
        negatives, hard = hard_negatives(background, matches)
    logits = rows(output.logits, torch.cat([matches.boxes, negatives], dim=1))
    classes = torch.cat([matches.classes, torch.zeros_like(negatives)], dim=1)
    losses = F.cross_entropy(
        logits.transpose(1, 2), classes, reduction="none", label_smoothing=smoothing
    )
    counted = torch.cat([matches.classes > 0, hard], dim=1)
    return (losses * counted).sum(), losses[:, : matches.classes.shape[1]]


def _focal_losses(logits: Float[Tensor, "B K C1"], matches: Matches) -> Float[Tensor, "B K"]:
    """Returns the focal loss of every default box.

    This is the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 3) with a
    softmax over the classes and the background, which SSD's head has, instead of a sigmoid for each
    class.
    """
    # Padded places add 0.
    classes = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    classes = classes.scatter_add_(1, matches.boxes, matches.classes).unsqueeze(2)
    log_probability = logits.log_softmax(dim=2).gather(2, classes).squeeze(2)
    alpha = torch.where(classes.squeeze(2) > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return -alpha * (1 - log_probability.exp()) ** FOCAL_GAMMA * log_probability


def box_losses(
    a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"], kind: Literal["iou", "giou", "ciou"]
) -> Float[Tensor, "*batch"]:
    """Returns 1 - IoU, 1 - GIoU or 1 - CIoU of each pair of boxes.

    GIoU: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630. CIoU: Zheng et al. 2020,
    https://arxiv.org/abs/1911.08287, where the trade-off alpha is a constant for the gradient.

    Args:
        a: xyxy in any frame, with positive width and height.
        b: xyxy in the same frame, with positive width and height.
        kind: The measure.
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = area(torch.cat([low, high], dim=-1))
    union = area(a) + area(b) - intersection
    distance = 1 - intersection / union
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    if kind == "giou":
        hull = area(torch.cat([low, high], dim=-1))
        distance = distance + (hull - union) / hull
    elif kind == "ciou":
        shift = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
        size_a, size_b = (box[..., 2:] - box[..., :2] for box in (a, b))
        angle_a, angle_b = (torch.atan(size[..., 0] / size[..., 1]) for size in (size_a, size_b))
        ratio = 4 / math.pi**2 * (angle_a - angle_b).square()
        with torch.no_grad():
            alpha = ratio / (distance + ratio + 1e-7)
        distance = distance + shift / (high - low).square().sum(-1) + alpha * ratio
    return distance


@torch.no_grad()
def importance(
    distances: Float[Tensor, "B P"],
    targets: Float[Tensor, "B P 4"],
    matches: Matches,
    losses: Float[Tensor, "B P"],
) -> Float[Tensor, "B P"]:
    """Returns ISR-P's weights of the class losses of matched boxes, which keep the sum.

    Boxes of one object are ranked by IoU. Then all boxes of a class are ranked by this rank, and
    boxes of equal rank by IoU. The weight falls with the square of the rank (section 4.1).

    Args:
        distances: 1 - IoU of each predicted box with its target.
        targets: The targets, xyxy in the unit frame.
        matches: The matched default boxes.
        losses: The class losses.
    """
    positive, weights = matches.classes > 0, torch.ones_like(losses)
    if not positive.any():
        return weights
    # The object of a match is that of the first match with the same class and target.
    alike = matches.classes.unsqueeze(2) == matches.classes.unsqueeze(1)
    alike &= pairwise_iou(targets, targets) > _SAME_OBJECT
    first = alike.int().argmax(dim=2)
    objects = first + first.shape[1] * torch.arange(len(first), device=first.device).unsqueeze(1)
    labels, distance = matches.classes[positive], distances[positive]
    within = _ranks(objects[positive], distance)
    most = labels.bincount().max()
    weight = ((most - _ranks(labels, within, distance)) / most).square()
    loss = losses[positive]
    total = (loss * weight).sum()
    weights[positive] = weight * (loss.sum() / total.clamp(min=torch.finfo(total.dtype).tiny))
    return weights


def _ranks(groups: Int64[Tensor, " N"], *keys: Tensor) -> Int64[Tensor, " N"]:
    """Returns the place of each item in its group, from 0, if sorted by the keys, first key first.

    Ties keep their order.
    """
    order = torch.arange(len(groups), device=groups.device)
    for key in (*reversed(keys), groups):
        order = order[key[order].argsort(stable=True)]
    sorted_groups = groups[order]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(
        sorted_groups, sorted_groups
    )
    return ranks
