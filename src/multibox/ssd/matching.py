"""Matching: which default box answers for which object (SSD section 2.2, `bbox_util.cpp:584-720`).

1. Bipartite: again and again the pair of a free object and a free default box with the largest
   IoU is matched, until the objects or the overlapping pairs run out.
2. Per prediction: every default box still free is matched to its best object if their IoU is at
   least 0.5.

Ties go to the default box, then to the object, that comes first. Ports which let each object seize
its best default box lose one object where two want the same; here it gets its next best.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from multibox import boxes as bx
from multibox.ssd.coding import CAFFE_VARIANCES, Variances, encode
from multibox.structures import Matches, Targets

OVERLAP_THRESHOLD = 0.5
MIN_OVERLAP = 1e-6
"""Pairs must overlap by more than this to be matched at all (`bbox_util.cpp:617`)."""

# Relative step by which a later default box is put behind an earlier one of equal IoU. Neighbouring
# float32 differ by 2^-24 at least, and there are fewer than 2^16 boxes.
_TIE_STEP = 2.0**-40

_PAIRS_AT_A_TIME = 2**20
"""On a CPU: larger tables leave its cache."""
_PAIRS_ON_A_GPU = 2**25
"""Its launches cost more than its memory: all objects of a VOC batch at once."""


def match(
    default_boxes: Float[Tensor, "K 4"],
    targets: Targets,
    variances: Variances = CAFFE_VARIANCES,
) -> Matches:
    """Returns what every default box is to predict for each image of a batch.

    Difficult objects are matched like any other (`ssd_pascal.py:269`); a caller who wants them
    left out clears their `valid`.

    Args:
        default_boxes: xyxy in the unit frame.
        targets: The objects, padded to M per image.
        variances: The network's.
    """
    if targets.boxes.shape[1] == 0:
        shape = (targets.boxes.shape[0], default_boxes.shape[0])
        return Matches(
            offsets=default_boxes.new_zeros(*shape, 4),
            classes=torch.zeros(shape, dtype=torch.int64, device=default_boxes.device),
        )
    objects = match_boxes(default_boxes, targets.boxes, targets.valid)
    matched = objects >= 0
    index = objects.clamp(min=0)
    # An unmatched default box is encoded against itself, which gives zeros.
    boxes = targets.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    boxes = torch.where(matched.unsqueeze(-1), boxes, default_boxes)
    classes = targets.labels.gather(1, index).add_(1).mul_(matched)
    return Matches(encode(boxes, default_boxes, variances), classes)


def match_boxes(
    default_boxes: Float[Tensor, "K 4"], boxes: Float[Tensor, "B M 4"], valid: Bool[Tensor, "B M"]
) -> Int64[Tensor, "B K"]:
    """Returns the object that each default box is matched to, -1 for none.

    Args:
        default_boxes: xyxy in the unit frame.
        boxes: The objects, likewise.
        valid: False for padding, which is matched to nothing. M is at least 1.
    """
    (batch, num_objects), num_boxes = valid.shape, default_boxes.shape[0]
    device = boxes.device
    best = torch.zeros(batch, num_boxes, device=device)
    objects = torch.full((batch, num_boxes), -1, device=device)
    values = torch.zeros(batch, num_objects, device=device)
    chosen = torch.zeros(batch, num_objects, dtype=torch.int64, device=device)
    pairs = _PAIRS_AT_A_TIME if device.type == "cpu" else _PAIRS_ON_A_GPU
    count = max(1, pairs // (batch * num_boxes))
    for first in range(0, num_objects, count):
        some = slice(first, first + count)
        images: slice | Tensor = slice(None)
        if count < num_objects:
            # Few images have many objects. To know which, a GPU would be waited for.
            images = valid[:, some].any(dim=1).nonzero().squeeze(1)
        overlaps = bx.pairwise_iou(boxes[images, some], default_boxes)
        overlaps.mul_(valid[images, some].unsqueeze(2))
        # `max` returns the first of equal ones.
        largest, place = overlaps.max(dim=1)
        objects[images] = torch.where(largest > best[images], place.add_(first), objects[images])
        best[images] = torch.maximum(best[images], largest)
        values[images, some], chosen[images, some] = overlaps.max(dim=2)
    objects.masked_fill_(best < OVERLAP_THRESHOLD, -1)
    found = values > MIN_OVERLAP
    # Where all objects of an image want different default boxes, each gets its own.
    wanted = torch.where(found, chosen, -1 - torch.arange(num_objects, device=device))
    wanted = wanted.sort(dim=1).values
    contested = (wanted[:, 1:] == wanted[:, :-1]).any(dim=1).nonzero().squeeze(1)
    size = max(1, pairs // (num_objects * num_boxes))
    for start in range(0, len(contested), size):
        some_images = contested[start : start + size]
        chosen[some_images], found[some_images] = _contend(
            default_boxes, boxes[some_images], valid[some_images]
        )
    # Column K takes the objects that found no box, so that no shape depends on the data.
    padded = torch.cat([objects, objects.new_empty(batch, 1)], dim=1)
    numbers = torch.arange(num_objects, device=device).expand_as(chosen)
    padded.scatter_(1, torch.where(found, chosen, num_boxes), numbers)
    return padded[:, :num_boxes]


def _contend(
    default_boxes: Float[Tensor, "K 4"], boxes: Float[Tensor, "B M 4"], valid: Bool[Tensor, "B M"]
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Returns the default box of each object where some want the same, and whether it found one.

    Only an object's M best default boxes can become its own, since the others take at most M - 1.
    """
    num_boxes = default_boxes.shape[0]
    overlaps = bx.pairwise_iou(boxes, default_boxes).mul_(valid.unsqueeze(2))
    rank = 1 - torch.arange(num_boxes, dtype=torch.float64, device=boxes.device) * _TIE_STEP
    values, places = (overlaps * rank).topk(min(valid.shape[1], num_boxes), dim=2)
    return _bipartite(torch.where(values > MIN_OVERLAP, values, 0), places)


def _bipartite(
    candidates: Float64[Tensor, "B M n"], boxes: Int64[Tensor, "B M n"]
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Returns the default box of each object by greedy matching, and whether it found one.

    Args:
        candidates: Its best overlaps, slightly smaller for later boxes; 0 where there is none.
        boxes: The default boxes they are with.
    """
    batch, num_objects, width = candidates.shape
    device = candidates.device
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
