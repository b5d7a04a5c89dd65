"""Matching: which default box answers for which object (SSD section 2.2, `bbox_util.cpp:584-720`).

1. Bipartite: again and again the pair of a free object and a free default box with the largest
   IoU is matched, until the objects or the overlapping pairs run out.
2. Per prediction: every default box still free is matched to its best object if their IoU is at
   least 0.5.

Ties go to the default box, then to the object, that comes first. Ports which let each object seize
its best default box lose one object where two want the same; here it gets its next best.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from multibox import boxes as bx
from multibox.ssd.coding import CAFFE_VARIANCES, Variances, encode
from multibox.structures import Matches, Targets

OVERLAP_THRESHOLD = 0.5
MIN_OVERLAP = 1e-6
"""Pairs must overlap by more than this to be matched at all (`bbox_util.cpp:617`)."""

_PAIRS_AT_A_TIME = 2**18
"""Larger tables do not fit into the cache of a core."""


def match(
    default_boxes: Float[Tensor, "K 4"],
    targets: Targets,
    variances: Variances = CAFFE_VARIANCES,
) -> Matches:
    """Returns what the matched default boxes of each image of a batch are to predict.

    Difficult objects are matched like any other (`ssd_pascal.py:269`); a caller who wants them
    left out clears their `valid`. The matches of an image do not depend on the other images.

    Args:
        default_boxes: xyxy in the unit frame.
        targets: The objects, padded to M per image.
        variances: The network's.
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
    """Returns the matched default boxes and the object of each, in order of image and box.

    Args:
        default_boxes: xyxy in the unit frame.
        boxes: The objects of all images of a batch, likewise.
        image: The image that each object is in, ascending.
    """
    size = max(1, _PAIRS_AT_A_TIME // default_boxes.shape[0])
    best: list[tuple[float, int]] = []
    pairs, overlap = [], []
    for start in range(0, len(boxes), size):
        overlaps = bx.pairwise_iou(boxes[start : start + size], default_boxes)
        # `max` returns the first of equal ones.
        largest, first = overlaps.max(dim=1)
        best += zip(largest.tolist(), first.tolist(), strict=True)
        # Few default boxes overlap any object by so much.
        near = (overlaps.amax(dim=0) >= OVERLAP_THRESHOLD).nonzero().squeeze(1)
        overlaps = overlaps[:, near]
        item, column = (overlaps >= OVERLAP_THRESHOLD).nonzero(as_tuple=True)
        overlap.append(overlaps[item, column])
        pairs.append(torch.stack([item + start, near[column]], dim=1))
    own = _bipartite(default_boxes, boxes, image.tolist(), best)
    forced = torch.tensor(own, dtype=torch.int64).reshape(-1, 2)
    item, box = torch.cat([forced, *pairs]).unbind(1)
    # What is an object's own comes before any overlap.
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
    """Returns pairs of an object and the default box that is its own.

    Each object asks for its best default box. Of two that ask for the same, the one with the larger
    overlap keeps it, and the other asks for its next best. So every pair that is left is the best
    of those which are still free: the result is the same as when the pairs are chosen one by one,
    the largest first.

    Args:
        default_boxes: xyxy in the unit frame.
        boxes: The objects, likewise.
        image: The image that each object is in.
        best: The largest overlap of each object, and the first default box that has it.
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
