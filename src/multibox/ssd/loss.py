"""The multibox loss with hard negative mining (SSD section 2.2).

    loss = (confidence + localization) / N

over the N matched default boxes (positives) of the whole batch (`multibox_loss_layer.cpp:146-253`):
the cross-entropy of positives and of the hardest negatives, three per positive within each image,
and the smooth L1 distance of the positives' offsets. An image without objects contributes nothing.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox.structures import Losses, Matches, Output

NEGATIVES_PER_POSITIVE = 3


def hard_negatives(
    losses: Float[Tensor, "B K"], classes: Int64[Tensor, "B K"]
) -> Bool[Tensor, "B K"]:
    """Returns the unmatched default boxes that count: the least background-like of each image.

    Caffe also asks that a negative overlaps every object by less than 0.5. After matching that
    holds for all unmatched boxes (`bbox_util.cpp:928-960`).

    Args:
        losses: The cross-entropy; where unmatched, -ln of the background's probability.
        classes: 0 where unmatched.
    """
    positive = classes > 0
    count = positive.sum(dim=1, keepdim=True) * NEGATIVES_PER_POSITIVE
    ranked = losses.masked_fill(positive, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < count
    return torch.zeros_like(positive).scatter_(1, order, first).logical_and_(~positive)


def multibox_loss(output: Output, matches: Matches, num_positives: Float[Tensor, ""]) -> Losses:
    """Returns both parts of the loss, divided by the number of positives.

    Args:
        output: What the network says of a batch, or of a part of it.
        matches: What it should have said.
        num_positives: N of the whole batch, over all its parts and processes; at least 1.
    """
    logits, classes = output.logits.float(), matches.classes
    positive = classes > 0
    # Of an unmatched box it is -ln of the background's probability.
    losses = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    losses = losses.view_as(classes)
    selected = hard_negatives(losses.detach(), classes) | positive
    confidence = (losses * selected).sum()
    distance = F.smooth_l1_loss(output.offsets.float(), matches.offsets, reduction="none")
    localization = (distance * positive.unsqueeze(2)).sum()
    return Losses(confidence / num_positives, localization / num_positives)
