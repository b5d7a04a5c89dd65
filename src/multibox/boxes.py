"""Functions on boxes: float tensors of shape (..., 4), xyxy unless the name says otherwise."""

import torch
from jaxtyping import Float
from torch import Tensor

_AT_A_TIME = 128


def area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Returns the areas in squared units of the boxes. Inverted boxes have an area of 0."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def pairwise_iou(
    a: Float[Tensor, "*batch M 4"], b: Float[Tensor, "*#batch K 4"]
) -> Float[Tensor, "*batch M K"]:
    """Returns the intersection over union of every box of `a` with every box of `b`.

    No pixel is added to widths and heights. If the union is empty, the result is 0
    (`bbox_util.cpp:274-294`).
    """
    # One contiguous plane per coordinate: three times faster than strided columns.
    ax0, ay0, ax1, ay1 = a.unsqueeze(-1).unbind(-2)
    bx0, by0, bx1, by1 = b.transpose(-1, -2).contiguous().unsqueeze(-3).unbind(-2)
    width = torch.minimum(ax1, bx1).sub_(torch.maximum(ax0, bx0)).clamp_(min=0)
    height = torch.minimum(ay1, by1).sub_(torch.maximum(ay0, by0)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def best_iou(
    boxes: Float[Tensor, "M 4"], default_boxes: Float[Tensor, "K 4"]
) -> Float[Tensor, " M"]:
    """Returns the largest IoU of each box with a default box."""
    # In parts, because the IoUs of all pairs would fill the memory.
    parts = torch.split(boxes, _AT_A_TIME)
    return torch.cat([pairwise_iou(part, default_boxes).amax(dim=1) for part in parts])


def evenly_spaced(boxes: Float[Tensor, "M 4"], most: int) -> Float[Tensor, "N 4"]:
    """Returns at most `most` of the boxes, evenly spaced and in order. `most` is at least 2."""
    if len(boxes) <= most:
        return boxes
    # The nearest whole numbers, without rounding errors.
    last = most - 1
    return boxes[(2 * (len(boxes) - 1) * torch.arange(most) + last) // (2 * last)]


def to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Returns (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def to_xyxy(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Returns (x0, y0, x1, y1) of boxes given as (centre x, centre y, width, height)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)
