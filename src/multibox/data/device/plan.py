"""Rendering plans: the few numbers that a device needs to render an image.

Workers make them without any pixels, and they are copied to the device (see `batches`).
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
    """The pixels that are read along one axis of a crop, and their weights.

    `output`, `place` and `weight` have one entry for each pair of an output pixel and a pixel that
    it reads.

    Attributes:
        start: The first image pixel that is read.
        length_px: The number of image pixels from the first to the last that is read.
        output: The output pixel.
        place: The image pixel that it reads, counted from `start`.
        weight: The weight of that pixel, in units of 1 / `resampling.UNIT`.
    """

    start: int
    length_px: int
    output: Int64[np.ndarray, " T"]
    place: Int64[np.ndarray, " T"]
    weight: Int64[np.ndarray, " T"]


class Plan(NamedTuple):
    """The plan to render one image.

    Attributes:
        first: Index of the first pixel that is read among all stored pixels.
        stride: Width of the stored image.
        rows: The vertical axis.
        columns: The horizontal axis.
        levels: Four lookup tables for levels: of R, G and B before the conversion to HSV, of H, of
            S, and of R, G and B after the conversion back.
        through_hsv: Whether the image is converted to HSV and back.
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
        seen_px: The largest height and the largest width that is read of an image.
        frames: int64 (4, B): first, stride, and the height and width that are read.
        rows: int64 (2, T): the index of each weight in the (B, h, height) matrices of all rows,
            and the weight.
        columns: int64 (2, U): the same for the (B, w, width) matrices of all columns.
        levels: uint8 (4, B, 256): the lookup tables.
        through_hsv: bool (B,): whether each image is converted to HSV and back.
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
    """Returns the plan to render an image.

    Args:
        geometry: The crop, interpolation and mirroring.
        colour: The colour distortion.
        image_size_px: (height, width) of the image.
        size_px: (height, width) of the output.
        first: Index of the image's first pixel among all stored pixels.
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
    """Returns the taps of a crop that begins at `start`, without those outside of the image."""
    places = taps.places + start
    output, tap = np.nonzero((places >= 0) & (places < length) & (taps.weights != 0))
    found = places[output, tap]
    if not len(found):
        # The crop shows no part of the image. One pixel is kept, which no output pixel reads.
        return Axis(0, 1, output, found, found)
    low = int(found.min())
    return Axis(low, int(found.max()) + 1 - low, output, found - low, taps.weights[output, tap])


def join_plans(plans: Sequence[Plan], size_px: tuple[int, int]) -> Plans:
    """Combines plans into tensors, for an output of (height, width)."""
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
