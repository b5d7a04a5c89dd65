"""How images are to be rendered, as the few numbers that a device needs for it.

They are made by processes that never see a pixel, and copied to the device (`batched`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from multibox.data.device.resampling import Taps, find_taps
from multibox.data.geometry import Geometry
from multibox.data.pixels import Colour, distort

_RAMP = np.arange(256, dtype=np.uint8).reshape(256, 1, 1).repeat(3, axis=2)


class Axis(NamedTuple):
    """One axis of a crop.

    Attributes:
        start: The first pixel of the image that is seen.
        length_px: How many are.
        output: Output pixels, and for each
        place: the pixel it reads, counted from `start`, and
        weight: the weight of that one in `taps.UNIT`.
    """

    start: int
    length_px: int
    output: Int64[np.ndarray, " T"]
    place: Int64[np.ndarray, " T"]
    weight: Int64[np.ndarray, " T"]


class Plan(NamedTuple):
    """How one image is to be rendered.

    Attributes:
        first: Place of the first pixel that is seen among all stored pixels.
        stride: The stored image's width.
        rows: From top to bottom.
        columns: From left to right.
        levels: What becomes of a level in R, G and B before a trip through HSV, in H, in S, and in
            R, G and B afterwards.
        through_hsv: Whether there is such a trip.
    """

    first: int
    stride: int
    rows: Axis
    columns: Axis
    levels: UInt8[np.ndarray, "4 256"]
    through_hsv: bool


class Plans(NamedTuple):
    """The plans of a batch.

    Attributes:
        seen_px: (height, width) of the largest part of an image that is seen.
        frames: int64 (4, B): first, stride, height and width of what is seen.
        rows: int64 (2, T): for each tap its place in the (B, h, height) weights of all rows, and
            its weight.
        columns: Likewise, (B, w, width).
        levels: uint8 (4, B, 256).
        through_hsv: bool (B,).
    """

    seen_px: tuple[int, int]
    frames: Int64[Tensor, "4 B"]
    rows: Int64[Tensor, "2 T"]
    columns: Int64[Tensor, "2 U"]
    levels: UInt8[Tensor, "4 B 256"]
    through_hsv: Bool[Tensor, " B"]

    def to(self, device: torch.device) -> "Plans":
        """Returns the same plans on a device."""
        seen_px, *tensors = self
        return Plans(seen_px, *(tensor.to(device, non_blocking=True) for tensor in tensors))


def plan(
    geometry: Geometry,
    colour: Colour,
    image_size_px: tuple[int, int],
    size_px: tuple[int, int],
    first: int,
) -> Plan:
    """Returns how to render an image.

    Args:
        geometry: Which rectangle to show, and how.
        colour: The distortion of the image.
        image_size_px: (height, width) of the image.
        size_px: (height, width) of the output.
        first: Place of the image's first pixel among all stored pixels.
    """
    x0, y0, x1, y1 = geometry.crop_px
    kind = geometry.interpolation
    shrinks = y1 - y0 >= size_px[0] and x1 - x0 >= size_px[1]
    rows = find_taps(y1 - y0, size_px[0], kind, shrinks=shrinks)
    columns = find_taps(x1 - x0, size_px[1], kind, shrinks=shrinks)
    if geometry.mirror:
        columns = Taps(columns.places[::-1], columns.weights[::-1])
    height, width = image_size_px
    seen_rows, seen_columns = _seen(rows, y0, height), _seen(columns, x0, width)
    once = Colour(colour.brightness, 1.0 if colour.contrast_last else colour.contrast)
    last = Colour(contrast=colour.contrast if colour.contrast_last else 1.0)
    changes = (once, Colour(colour.hue), Colour(contrast=colour.saturation), last)
    return Plan(
        first + seen_rows.start * width + seen_columns.start,
        width,
        seen_rows,
        seen_columns,
        np.stack([distort(_RAMP, change)[:, 0, 0] for change in changes]),
        through_hsv=colour.saturation != 1 or colour.hue != 0,
    )


def _seen(taps: Taps, start: int, length: int) -> Axis:
    """Returns the taps that lie in the image, of a crop that begins at `start`."""
    places = taps.places + start
    output, tap = np.nonzero((places >= 0) & (places < length) & (taps.weights != 0))
    found = places[output, tap]
    if not len(found):
        # A pixel that nothing reads stands for the image.
        return Axis(0, 1, output, found, found)
    low = int(found.min())
    return Axis(low, int(found.max()) + 1 - low, output, found - low, taps.weights[output, tap])


def join_plans(plans: Sequence[Plan], size_px: tuple[int, int]) -> Plans:
    """Returns the plans as tensors, for an output of (height, width)."""
    frames = [(p.first, p.stride, p.rows.length_px, p.columns.length_px) for p in plans]
    seen_px = max(frame[2] for frame in frames), max(frame[3] for frame in frames)
    return Plans(
        seen_px,
        torch.tensor(frames).T.contiguous(),
        _join([plan.rows for plan in plans], size_px[0], seen_px[0]),
        _join([plan.columns for plan in plans], size_px[1], seen_px[1]),
        torch.from_numpy(np.stack([plan.levels for plan in plans], axis=1)),
        torch.tensor([plan.through_hsv for plan in plans]),
    )


def _join(axes: Sequence[Axis], size: int, length: int) -> Int64[Tensor, "2 T"]:
    places = [(row * size + axis.output) * length + axis.place for row, axis in enumerate(axes)]
    weights = np.concatenate([axis.weight for axis in axes])
    return torch.from_numpy(np.stack([np.concatenate(places), weights]))
