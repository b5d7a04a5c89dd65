"""Offsets encode a box relative to a default box (SSD section 2.2).

    dx = (gx - cx) / w / 0.1    dw = ln(gw / w) / 0.2
    dy = (gy - cy) / h / 0.1    dh = ln(gh / h) / 0.2

for a box with centre (gx, gy) and size (gw, gh) and a default box (cx, cy, w, h). The divisors are
the variances (`ssd_pascal.py:322-326`, `bbox_util.cpp:355-410`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from multibox.boxes import to_cxcywh, to_xyxy


class Variances(NamedTuple):
    """The divisors of the offsets, which balance them in the loss. Defaults: Caffe.

    Attributes:
        centre: Divides dx and dy.
        size: Divides dw and dh.
    """

    centre: float = 0.1
    size: float = 0.2


CAFFE_VARIANCES = Variances()


def encode(
    boxes: Float[Tensor, "*#batch K 4"],
    default_boxes: Float[Tensor, "K 4"],
    variances: Variances = CAFFE_VARIANCES,
) -> Float[Tensor, "*batch K 4"]:
    """Returns the offsets from each default box to the corresponding box.

    Args:
        boxes: xyxy in any frame, with positive width and height.
        default_boxes: xyxy in the same frame.
        variances: The variances of the network.
    """
    box, default = to_cxcywh(boxes), to_cxcywh(default_boxes)
    centre = (box[..., :2] - default[..., :2]) / (default[..., 2:] * variances.centre)
    size = torch.log(box[..., 2:] / default[..., 2:]) / variances.size
    return torch.cat([centre, size], dim=-1)


def decode(
    offsets: Float[Tensor, "*#batch 4"],
    default_boxes: Float[Tensor, "*#batch 4"],
    variances: Variances = CAFFE_VARIANCES,
) -> Float[Tensor, "*batch 4"]:
    """Returns the boxes of some offsets, xyxy in the frame of the default boxes, not clipped."""
    default = to_cxcywh(default_boxes)
    centre = default[..., :2] + offsets[..., :2] * variances.centre * default[..., 2:]
    size = default[..., 2:] * torch.exp(offsets[..., 2:] * variances.size)
    return to_xyxy(torch.cat([centre, size], dim=-1))
