"""Matches default boxes to objects (SSD section 2.2, `bbox_util.cpp:584-720`).

1. Bipartite matching: among all unmatched objects and default boxes, match the pair with the
   largest IoU. Repeat until every object is matched or no unmatched pair overlaps.
2. Per-prediction matching: match every other default box to its best object if their IoU is at
   least 0.5.

Ties go to the first default box, then to the first object. In ports that simply give each object
its best default box, two objects with the same best default box lose one match. Here the second
object gets its next best.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from multibox import boxes as bx
from multibox.ssd.coding import CAFFE_VARIANCES, Variances, encode
from multibox.structures import Matches, Targets

OVERLAP_THRESHOLD = 0.5
MIN_OVERLAP = 1e-6
"""Only pairs with a larger overlap are matched (`bbox_util.cpp:617`)."""

_PAIRS_AT_A_TIME = 2**18
"""Larger tables of overlaps would not fit into a core's cache."""


def match(
    default_boxes: Float[Tensor, "K 4"], targets: Targets, variances: Variances = CAFFE_VARIANCES
) -> Matches:
    """Returns the matched default boxes of each image of a batch, with their classes and offsets.

    Difficult objects are matched like any other (`ssd_pascal.py:269`). To leave them out, clear
    their `valid`. The matches of an image do not depend on the other images.

    Args:
        default_boxes: xyxy in the unit frame.
        targets: The objects, padded to M per image.
        variances: The variances of the network.
    """
    batch = targets.valid.shape[0]
    image, column = targets.valid.nonzero(as_tuple=True)
    box, item = match_boxes(default_boxes, targets.boxes[image, column], image)
    image, column = image[item], column[item]
    offsets = encode(targets.boxes[image, column], default_boxes[box], variances)
    counts = torch.bincount(image, minlength=batch)
    place = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    most = int(counts.max())
    found = Matches(
        boxes=torch.zeros(batch, most, dtype=torch.int64),
        classes=torch.zeros(batch, most, dtype=torch.int64),
        offsets=torch.zeros(batch, most, 4),
    )
    found.boxes[image, place] = box
    found.classes[image, place] = targets.labels[image, column] + 1
    found.offsets[image, place] = offsets
    return found


def match_boxes(
    default_boxes: Float[Tensor, "K 4"], boxes: Float[Tensor, "M 4"], image: Int64[Tensor, " M"]
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """Returns the matched default boxes and their objects, sorted by image and default box.

    Args:
        default_boxes: xyxy in the unit frame.
        boxes: The objects of all images of a batch, xyxy in the unit frame.
        image: The image of each object, ascending.
    """
    size = max(1, _PAIRS_AT_A_TIME // default_boxes.shape[0])
    best: list[tuple[float, int]] = []
    pairs, overlap = [], []
    for start in range(0, len(boxes), size):
        overlaps = bx.pairwise_iou(boxes[start : start + size], default_boxes)
        # `max` returns the first of several equal values.
        largest, first = overlaps.max(dim=1)
        best += zip(largest.tolist(), first.tolist(), strict=True)
        # Only few default boxes overlap an object by so much.
        near = (overlaps.amax(dim=0) >= OVERLAP_THRESHOLD).nonzero().squeeze(1)
        overlaps = overlaps[:, near]
        item, column = (overlaps >= OVERLAP_THRESHOLD).nonzero(as_tuple=True)
        overlap.append(overlaps[item, column])
        pairs.append(torch.stack([item + start, near[column]], dim=1))
    own = _bipartite(default_boxes, boxes, image.tolist(), best)
    forced = torch.tensor(own, dtype=torch.int64).reshape(-1, 2)
    item, box = torch.cat([forced, *pairs]).unbind(1)
    # Bipartite matches win over all others.
    value = torch.cat([torch.full((len(own),), 2.0), *overlap])
    order = value.argsort(descending=True, stable=True)
    place = image[item] * default_boxes.shape[0] + box
    order = order[place[order].argsort(stable=True)]
    place = place[order]
    order = order[place.diff(prepend=place.new_tensor([-1])) > 0]
    return box[order], item[order]


def _bipartite(
    default_boxes: Float[Tensor, "K 4"],
    boxes: Float[Tensor, "M 4"],
    image: list[int],
    best: list[tuple[float, int]],
) -> list[tuple[int, int]]:
    """Returns the pairs (object, default box) of the bipartite matching.

    Each object proposes to its best default box. If two objects propose to the same one, the larger
    overlap wins, and the other object proposes to its next best. The result is the same as that of
    choosing the pairs one by one in order of overlap.

    Args:
        default_boxes: xyxy in the unit frame.
        boxes: The objects, xyxy in the unit frame.
        image: The image of each object.
        best: The largest overlap of each object, and the first default box with that overlap.
    """
    owners: dict[tuple[int, int], tuple[float, int]] = {}
    rows: dict[int, Tensor] = {}
    for item, (value, box) in enumerate(best):
        while value > MIN_OVERLAP:
            place = image[item], box
            owner_value, owner = owners.get(place, (0.0, -1))
            if (value, owner) > (owner_value, item):
                owners[place] = value, item
                item = owner
            if item < 0:
                break
            if item not in rows:
                rows[item] = bx.pairwise_iou(boxes[item : item + 1], default_boxes)[0]
            rows[item][box] = 0
            largest, first = rows[item].max(dim=0)
            value, box = largest.item(), int(first)
    return [(item, box) for (_, box), (_, item) in owners.items()]
