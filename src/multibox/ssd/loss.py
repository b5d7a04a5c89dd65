"""The multibox loss with hard negative mining (SSD section 2.2).

    loss = (confidence + localization) / N

N is the number of matched default boxes (positives) in the batch
(`multibox_loss_layer.cpp:146-253`). The confidence loss is the cross-entropy of the positives and
of the hardest negatives, three per positive in each image. The localization loss is the smooth L1
distance of the offsets of the positives. An image without objects contributes nothing.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox.structures import Losses, Matches, Output

NEGATIVES_PER_POSITIVE = 3


def hard_negatives(
    losses: Float[Tensor, "B K"], matches: Matches
) -> tuple[Int64[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Returns the hard negatives: the unmatched default boxes with the largest losses.

    Each image has its own. Ties go to the first default box. Caffe also requires that a negative
    overlaps every object by less than 0.5, which holds for all unmatched default boxes
    (`bbox_util.cpp:928-960`).

    Args:
        losses: -ln of the probability of the background. NaN counts as the largest.
        matches: The matched default boxes.

    Returns:
        Indices of default boxes, and a mask of those that are hard negatives. The others are
        padding.
    """
    num_boxes, positive = losses.shape[1], matches.classes > 0
    # The bits of non-negative floats sort like the floats. The low bits prefer earlier boxes.
    later = torch.arange(num_boxes - 1, -1, -1, device=losses.device)
    keys = (losses.abs().view(torch.int32).long() << 32) | later
    # Padded places repeat the first match.
    keys.scatter_(1, torch.where(positive, matches.boxes, matches.boxes[:, :1]), -1)
    most = min(NEGATIVES_PER_POSITIVE * positive.shape[1], num_boxes)
    largest, places = keys.topk(most, dim=1)
    count = positive.sum(dim=1, keepdim=True) * NEGATIVES_PER_POSITIVE
    return places, (torch.arange(most, device=losses.device) < count) & (largest >= 0)


def multibox_loss(output: Output, matches: Matches, num_positives: Float[Tensor, ""]) -> Losses:
    """Returns both parts of the loss, divided by the number of positives.

    Args:
        output: The output of the network for a batch or a part of it.
        matches: The matches of the same images.
        num_positives: N of the whole batch, over all parts and processes; at least 1.
    """
    positive = matches.classes > 0
    with torch.no_grad():
        background = -output.logits.float().log_softmax(dim=2)[..., 0]
        negatives, hard = hard_negatives(background, matches)
    # Only these rows of the output have a gradient.
    logits = rows(output.logits, torch.cat([matches.boxes, negatives], dim=1))
    classes = torch.cat([matches.classes, torch.zeros_like(negatives)], dim=1)
    losses = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    confidence = (losses * torch.cat([positive, hard], dim=1).flatten()).sum()
    offsets = rows(output.offsets, matches.boxes)
    distance = F.smooth_l1_loss(offsets, matches.offsets, reduction="none")
    localization = (distance * positive.unsqueeze(2)).sum()
    return Losses(confidence / num_positives, localization / num_positives)


def rows(table: Float[Tensor, "B K n"], boxes: Int64[Tensor, "B N"]) -> Float[Tensor, "B N n"]:
    """Returns the rows of some default boxes of each image, as float32."""
    return table.gather(1, boxes.unsqueeze(2).expand(-1, -1, table.shape[2])).float()
