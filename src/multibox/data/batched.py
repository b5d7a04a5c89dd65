"""Renders a batch of images on a device as `pixels.render` renders each on the CPU.

A resize is linear and separable: along either axis it is a matrix with a row of weights for each
output pixel (`taps`). With the mean colour subtracted, what lies outside of an image is 0, so that
crop, expansion, resize and mirror of an image are two products,

    output - mean = rows @ (image - mean) @ columns^T,

for all images of a batch at once and for any kind of interpolation, whose cost grows with the
pixels that are seen and not with the taps: some 23 GFLOP for 32 images of VOC's size, where the
network's step has 6,000.

The weights are whole numbers of 1/2048 and what lies between the two products is rounded to 1/8 of
a level. So all sums are whole numbers below 2^24, which float32 holds exactly, in whatever order
they are added: a sample has the same pixels on every device and whatever its batch is padded to,
and padding needs no mask, for its weights are 0.

Colours are distorted before the resize, as in Caffe, and before the mean colour surrounds them.
OpenCV's conversions to HSV and back are looked up in tables of all 2^24 colours that OpenCV itself
filled. Nothing here waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64, Integer, UInt8
from torch import Tensor

from multibox.data.geometry import Geometry
from multibox.data.pixels import MEAN_COLOUR, Colour, distort
from multibox.data.taps import UNIT, Taps, find_taps

# Of a level, between the two products.
_PARTS = 8

_RAMP = np.arange(256, dtype=np.uint8).reshape(256, 1, 1).repeat(3, axis=2)


class _Axis(NamedTuple):
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
    rows: _Axis
    columns: _Axis
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
        return Plans(
            seen_px, *(t if t is None else t.to(device, non_blocking=True) for t in tensors)
        )


class ColourTables(NamedTuple):
    """OpenCV's conversions of all colours, each packed into an integer (red or hue highest).

    Attributes:
        to_hsv: From RGB.
        to_rgb: From HSV.
    """

    to_hsv: Int[Tensor, "16777216"]
    to_rgb: Int[Tensor, "16777216"]


def colour_tables(device: torch.device) -> ColourTables:
    """Returns the tables: 128 MiB."""
    colours = np.arange(1 << 24, dtype=np.uint32).reshape(4096, 4096)
    # In memory, low bytes come first: an integer's three are B, G, R or V, S, H.
    channels = np.ascontiguousarray(colours.view(np.uint8).reshape(4096, 4096, 4)[..., 2::-1])
    tables = []
    for code in (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB):
        found = cv2.cvtColor(channels, code)
        packed = np.zeros((4096, 4096, 4), np.uint8)
        packed[..., 2::-1] = found
        tables.append(torch.from_numpy(packed.view(np.int32).reshape(-1)).to(device))
    return ColourTables(*tables)


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


def _seen(taps: Taps, start: int, length: int) -> _Axis:
    """Returns the taps that lie in the image, of a crop that begins at `start`."""
    places = taps.places + start
    output, tap = np.nonzero((places >= 0) & (places < length) & (taps.weights != 0))
    found = places[output, tap]
    if not len(found):
        # A pixel that nothing reads stands for the image.
        return _Axis(0, 1, output, found, found)
    low = int(found.min())
    return _Axis(low, int(found.max()) + 1 - low, output, found - low, taps.weights[output, tap])


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


def _join(axes: Sequence[_Axis], size: int, length: int) -> Int64[Tensor, "2 T"]:
    places = [(row * size + axis.output) * length + axis.place for row, axis in enumerate(axes)]
    weights = np.concatenate([axis.weight for axis in axes])
    return torch.from_numpy(np.stack([np.concatenate(places), weights]))


def render(
    pixels: UInt8[Tensor, "N 3"],
    plans: Plans,
    tables: ColourTables | None,
    size_px: tuple[int, int],
) -> UInt8[Tensor, "B 3 h w"]:
    """Returns the images that some plans make of stored pixels.

    Args:
        pixels: Of all images, one row after the other.
        plans: On the same device.
        tables: Needed where saturation or hue are distorted.
        size_px: (height, width) of the output.
    """
    count, (height, width) = plans.frames.shape[1], plans.seen_px
    centred = _colours(_gather(pixels, plans), plans, tables)
    columns = _weights(plans.columns, (count, size_px[1], width))
    across = centred.reshape(count, 3 * height, width) @ columns.mT
    across = across.mul_(_PARTS / UNIT).round_().reshape(count, 3, height, size_px[1])
    rows = _weights(plans.rows, (count, size_px[0], height))
    output = rows.unsqueeze(1) @ across
    output = output.mul_(1 / (_PARTS * UNIT)).add_(_mean(pixels.device)).round_().clamp_(0, 255)
    return output.to(torch.uint8, memory_format=torch.channels_last)


def _gather(pixels: UInt8[Tensor, "N 3"], plans: Plans) -> UInt8[Tensor, "B H W 3"]:
    """Returns what is seen of each image, its last row and column repeated as far as needed."""
    first, stride, heights, widths = plans.frames.unsqueeze(2)
    height, width = plans.seen_px
    rows = torch.arange(height, device=pixels.device).minimum(heights - 1) * stride + first
    columns = torch.arange(width, device=pixels.device).minimum(widths - 1)
    places = rows.unsqueeze(2) + columns.unsqueeze(1)
    return pixels.index_select(0, places.flatten()).reshape(-1, height, width, 3)


def _colours(
    seen: UInt8[Tensor, "B H W 3"], plans: Plans, tables: ColourTables | None
) -> Float32[Tensor, "B 3 H W"]:
    """Returns the distorted colours, less the mean colour."""
    before, hue, saturation, after = plans.levels.to(torch.int32)
    levels = _look_up(before, seen)
    if tables is not None:
        packed = (levels[..., 0] << 16) | (levels[..., 1] << 8) | levels[..., 2]
        hsv = tables.to_hsv.index_select(0, packed.flatten()).reshape(packed.shape)
        hues = _look_up(hue << 16, hsv >> 16)
        packed_hsv = hues | _look_up(saturation << 8, (hsv >> 8) & 255) | (hsv & 255)
        rgb = tables.to_rgb.index_select(0, packed_hsv.flatten()).reshape(packed.shape)
        packed = torch.where(plans.through_hsv[:, None, None], rgb, packed)
        levels = torch.stack([packed >> 16, (packed >> 8) & 255, packed & 255], dim=1)
    else:
        levels = levels.permute(0, 3, 1, 2)
    # A table for each image and channel, which knows the channel's mean.
    centred = after.unsqueeze(1) - _mean(seen.device).reshape(3, 1)
    return _look_up(centred.flatten(0, 1), levels.flatten(0, 1)).reshape(levels.shape)


def _look_up(table: Tensor, values: Integer[Tensor, "n ..."]) -> Tensor:
    """Returns the entries of a (n, 256) table that the integers, 0..255, mean in each row."""
    row = 256 * torch.arange(len(table), dtype=torch.int32, device=table.device)
    places = values + row.reshape(-1, *[1] * (values.dim() - 1))
    return table.flatten().index_select(0, places.flatten()).reshape(values.shape)


def _weights(taps: Int64[Tensor, "2 T"], shape: tuple[int, int, int]) -> Float32[Tensor, "B n L"]:
    """Returns the matrices of an axis; sums of whole numbers, in whatever order."""
    flat = torch.zeros(shape[0] * shape[1] * shape[2], device=taps.device)
    return flat.index_add_(0, taps[0], taps[1].to(torch.float32)).reshape(shape)


def _mean(device: torch.device) -> Float32[Tensor, "3 1 1"]:
    # A blocking copy would wait for the device: these three numbers are made on it.
    mean = torch.empty(3, 1, 1, device=device)
    for channel, level in enumerate(MEAN_COLOUR):
        mean[channel] = level
    return mean
