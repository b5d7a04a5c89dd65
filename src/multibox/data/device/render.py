"""Renders a batch of images on a device, as `pixels.render` does for one image on the CPU.

A resize is linear and separable: along each axis it is a matrix with a row of weights for each
output pixel (`resampling`). With the mean colour subtracted, pixels outside of an image are 0.
Therefore the crop, expansion, resize and mirror of an image are two matrix products,

    output - mean = rows @ (image - mean) @ columns^T,

for all images of a batch at once and for any interpolation. Their cost depends on the number of
pixels that are read, not on the width of the kernel: about 23 GFLOP for 32 images of VOC's size,
where a training step takes 6,000.

The weights are multiples of 1/2048, and the result of the first product is rounded to 1/8 of a
level. So all sums are whole numbers below 2^24, which float32 represents exactly in any order of
addition. A sample therefore has the same pixels on every device and with any padding of its batch,
and padding needs no mask, because its weights are 0.

Colours are distorted before the resize, as in Caffe, and before the mean colour is added around
the image. The conversions to HSV and back use lookup tables of all 2^24 colours, filled by OpenCV.
Nothing here waits for the device.

Mean difference of the pixels in levels of 0..255, over random geometries of an image of 500 x 375
(checked by `tests/data/device/`):

    from                        linear   area  nearest  cubic  lanczos  with colours
    Caffe's order, all stages    0.10    0.05   0       0.02    0.05     0.11
    `pixels.render`              0.10    0.06   0.02    0.03    0.03     0.15

Without colour distortion, no pixel differs from Caffe's by more than one level. `pixels.render`
shifts some images by up to 1/32 pixel and distorts some after the resize, so one or two of 1,000
pixels differ by 4 or more levels.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, Integer, UInt8
from torch import Tensor

from multibox.data.device.plan import Plans
from multibox.data.device.resampling import UNIT
from multibox.structures import MEAN_RGB

# The result of the first product is rounded to this fraction of a level.
_PARTS = 8


class ColourTables(NamedTuple):
    """OpenCV's conversions of all colours. A colour is an integer with red or hue highest.

    Attributes:
        to_hsv: The HSV colour of each RGB colour.
        to_rgb: The RGB colour of each HSV colour.
    """

    to_hsv: Int[Tensor, "16777216"]
    to_rgb: Int[Tensor, "16777216"]


def colour_tables(device: torch.device) -> ColourTables:
    """Returns the tables, which take 128 MiB."""
    colours = np.arange(1 << 24, dtype=np.uint32).reshape(4096, 4096)
    # Integers are little-endian, so their bytes are B, G, R or V, S, H.
    channels = np.ascontiguousarray(colours.view(np.uint8).reshape(4096, 4096, 4)[..., 2::-1])
    tables = []
    for code in (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB):
        found = cv2.cvtColor(channels, code)
        packed = np.zeros((4096, 4096, 4), np.uint8)
        packed[..., 2::-1] = found
        tables.append(torch.from_numpy(packed.view(np.int32).reshape(-1)).to(device))
    return ColourTables(*tables)


def render(
    pixels: UInt8[Tensor, "N 3"],
    plans: Plans,
    tables: ColourTables | None,
    size_px: tuple[int, int],
) -> UInt8[Tensor, "B 3 h w"]:
    """Renders the images of a batch.

    Args:
        pixels: The stored pixels of all images, one row after the other.
        plans: The plans of the batch, on the same device.
        tables: The colour tables. May be None if neither saturation nor hue is distorted.
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
    """Returns the pixels that are read of each image, padded with its last row and column."""
    first, stride, heights, widths = plans.frames.unsqueeze(2)
    height, width = plans.seen_px
    rows = torch.arange(height, device=pixels.device).minimum(heights - 1) * stride + first
    columns = torch.arange(width, device=pixels.device).minimum(widths - 1)
    places = rows.unsqueeze(2) + columns.unsqueeze(1)
    return pixels.index_select(0, places.flatten()).reshape(-1, height, width, 3)


def _colours(
    seen: UInt8[Tensor, "B H W 3"], plans: Plans, tables: ColourTables | None
) -> Float32[Tensor, "B 3 H W"]:
    """Returns the distorted colours minus the mean colour."""
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
    # One table for each image and channel, which also subtracts the channel's mean.
    centred = after.unsqueeze(1) - _mean(seen.device).reshape(3, 1)
    return _look_up(centred.flatten(0, 1), levels.flatten(0, 1)).reshape(levels.shape)


def _look_up(table: Tensor, values: Integer[Tensor, "n ..."]) -> Tensor:
    """Looks up integers in 0..255 in a table of shape (n, 256), each in the row of its index."""
    row = 256 * torch.arange(len(table), dtype=torch.int32, device=table.device)
    places = values + row.reshape(-1, *[1] * (values.dim() - 1))
    return table.flatten().index_select(0, places.flatten()).reshape(values.shape)


def _weights(taps: Int64[Tensor, "2 T"], shape: tuple[int, int, int]) -> Float32[Tensor, "B n L"]:
    """Returns the weight matrices of an axis. The sums are exact, so their order is irrelevant."""
    flat = torch.zeros(shape[0] * shape[1] * shape[2], device=taps.device)
    return flat.index_add_(0, taps[0], taps[1].to(torch.float32)).reshape(shape)


def _mean(device: torch.device) -> Float32[Tensor, "3 1 1"]:
    # A copy would wait for the device, so these three numbers are made on it.
    mean = torch.empty(3, 1, 1, device=device)
    for channel, level in enumerate(MEAN_RGB):
        mean[channel] = level
    return mean
