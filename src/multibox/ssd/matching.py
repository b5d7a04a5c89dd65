"""Matching: which default box answers for which object (SSD section 2.2, `bbox_util.cpp:584-720`).

1. Bipartite: again and again the pair of a free object and a free default box with the largest
   IoU is matched, until the objects or the overlapping pairs run out.
2. Per prediction: every default box still free is matched to its best object if their IoU is at
   least 0.5.

Ties go to the default box, then to the object, that comes first. Ports which let each object seize
its best default box lose one object where two want the same; here it gets its next best.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from multibox import boxes as bx
from multibox.ssd.coding import encode
from multibox.structures import Matches, Targets

OVERLAP_THRESHOLD = 0.5
MIN_OVERLAP = 1e-6
"""Pairs must overlap by more than this to be matched at all (`bbox_util.cpp:617`)."""

# Relative step by which a later default box is put behind an earlier one of equal IoU. Neighbouring
# float32 differ by 2^-24 at least, and there are fewer than 2^16 boxes.
_TIE_STEP = 2.0**-40


def match(default_boxes: Float[Tensor, "K 4"], targets: Targets) -> Matches:
    """Returns what every default box is to predict for each image of a batch.

    Difficult objects are matched like any other (`ssd_pascal.py:269`); a caller who wants them
    left out clears their `valid`.

    Args:
        default_boxes: xyxy in the unit frame.
        targets: The objects, padded to M per image.
    """
    if targets.boxes.shape[1] == 0:
        shape = (targets.boxes.shape[0], default_boxes.shape[0])
        return Matches(
            offsets=default_boxes.new_zeros(*shape, 4),
            classes=torch.zeros(shape, dtype=torch.int64, device=default_boxes.device),
        )
    overlaps = bx.pairwise_iou(targets.boxes, default_boxes)
    overlaps.masked_fill_(~targets.valid.unsqueeze(2), 0)
    objects = match_overlaps(overlaps)
    matched = objects >= 0
    index = objects.clamp(min=0)
    # An unmatched default box is encoded against itself, which gives zeros.
    boxes = targets.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    boxes = torch.where(matched.unsqueeze(-1), boxes, default_boxes)
    classes = targets.labels.gather(1, index).add_(1).mul_(matched)
    return Matches(encode(boxes, default_boxes), classes)


def match_overlaps(overlaps: Float[Tensor, "B M K"]) -> Int64[Tensor, "B K"]:
    """Returns the object that each default box is matched to, -1 for none.

    Args:
        overlaps: IoU of every object and default box; 0 for padding. M is at least 1.
    """
    best, objects = overlaps.max(dim=1)
    objects.masked_fill_(best < OVERLAP_THRESHOLD, -1)
    boxes, found = _bipartite(overlaps)
    # Column K takes the objects that found no box, so that no shape depends on the data.
    num_boxes = overlaps.shape[2]
    padded = torch.cat([objects, objects.new_empty(objects.shape[0], 1)], dim=1)
    numbers = torch.arange(overlaps.shape[1], device=overlaps.device).expand_as(boxes)
    padded.scatter_(1, torch.where(found, boxes, num_boxes), numbers)
    return padded[:, :num_boxes]


def _bipartite(
    overlaps: Float[Tensor, "B M K"],
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Returns the default box of each object by greedy matching, and whether it found one.

    Only an object's M best default boxes can become its own, since the others take at most M - 1.
    The greedy choice therefore runs on M x M candidates instead of M x K pairs.
    """
    batch, num_objects, num_boxes = overlaps.shape
    device = overlaps.device
    rank = 1 - torch.arange(num_boxes, dtype=torch.float64, device=device) * _TIE_STEP
    width = min(num_objects, num_boxes)
    candidates, boxes = (overlaps.to(torch.float64) * rank).topk(width, dim=2)
    candidates = torch.where(candidates > MIN_OVERLAP, candidates, 0)

    images = torch.arange(batch, device=device)
    chosen = torch.zeros(batch, num_objects, dtype=torch.int64, device=device)
    found = torch.zeros(batch, num_objects, dtype=torch.bool, device=device)
    for _ in range(num_objects):
        value, place = candidates.flatten(1).max(dim=1)
        row = place // width
        box = boxes.flatten(1).gather(1, place.unsqueeze(1))
        live = value > 0
        chosen[images, row] = torch.where(live, box.squeeze(1), chosen[images, row])
        found[images, row] |= live
        candidates[images, row] = 0
        taken = (boxes == box.unsqueeze(2)) & live[:, None, None]
        candidates.masked_fill_(taken, 0)
    return chosen, found
