"""The taps of OpenCV's resize along one axis: the pixels that an output pixel reads, with weights.

The interpolations follow `cv2.resize` (OpenCV, `modules/imgproc/src/resize.cpp`). The weights are
multiples of 1/2048, as in OpenCV for uint8 (`INTER_RESIZE_COEF_BITS`), so `render` computes with
numbers that float32 represents exactly.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, Int64

UNIT = 2048
"""The sum of the weights of an output pixel."""

_CUBIC = -0.75
# The number of pixels that an output pixel reads on each side of its centre.
_REACH_PX = {cv2.INTER_LINEAR: 1, cv2.INTER_CUBIC: 2, cv2.INTER_LANCZOS4: 4}


class Taps(NamedTuple):
    """The input pixels that each of n output pixels reads.

    Attributes:
        places: The input pixels. A row may contain a pixel twice, or with a weight of 0.
        weights: Their weights. The sum of each row is `UNIT`.
    """

    places: Int64[np.ndarray, "n K"]
    weights: Int64[np.ndarray, "n K"]


def find_taps(extent_px: int, size_px: int, interpolation: int, *, shrinks: bool) -> Taps:
    """Returns the taps that resize an axis.

    Args:
        extent_px: Length of the input.
        size_px: Length of the output.
        interpolation: `cv2.INTER_*`.
        shrinks: Whether neither axis of the image grows. Only then does `INTER_AREA` use areas.
    """
    # In OpenCV's order of operations, because rounding decides about pixels on a border.
    inverse = size_px / extent_px
    scale = 1 / inverse
    output = np.arange(size_px)
    if interpolation in _REACH_PX:
        centre = (output + 0.5) * scale - 0.5
        reach = _REACH_PX[interpolation]
        first = np.floor(centre) - reach + 1
        distance = np.abs(centre[:, None] - first[:, None] - np.arange(2 * reach))
        shares = _kernel(distance, reach)
    elif interpolation == cv2.INTER_AREA and shrinks:
        low = output[:, None] * scale
        first = np.floor(low[:, 0])
        pixels = first[:, None] + np.arange(int(np.ceil(scale)) + 1)
        shares = np.maximum(np.minimum(pixels + 1, low + scale) - np.maximum(pixels, low), 0)
    elif interpolation == cv2.INTER_AREA:
        # OpenCV's linear variant for enlarging; in float32, which may round to the next pixel.
        first = np.floor(output * scale)
        fraction = (output + 1 - (first + 1) * inverse).astype(np.float32).astype(np.float64)
        fraction = np.where(fraction <= 0, 0, fraction - np.floor(fraction))
        shares = np.stack([1 - fraction, fraction], axis=1)
    else:
        first = np.floor(output * scale)
        shares = np.ones((size_px, 1))
    places = first[:, None].astype(np.int64) + np.arange(shares.shape[1])
    return Taps(np.clip(places, 0, extent_px - 1), _round_shares(shares))


def _kernel(distance: Float64[np.ndarray, "n K"], reach_px: int) -> Float64[np.ndarray, "n K"]:
    """Returns the weights of pixels by their distance from the centre of the output pixel."""
    if reach_px == 1:
        return 1 - distance
    if reach_px == 4:
        return np.asarray(np.sinc(distance) * np.sinc(distance / 4))
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.asarray(np.where(distance <= 1, near, far))


def _round_shares(shares: Float64[np.ndarray, "n K"]) -> Int64[np.ndarray, "n K"]:
    """Returns the shares in whole units of 1 / `UNIT`.

    The cumulative sums are rounded instead of the shares, so that each row sums to `UNIT`.
    """
    sums = shares.cumsum(axis=1)
    rounded = np.rint(sums * (UNIT / sums[:, -1:])).astype(np.int64)
    return np.diff(rounded, axis=1, prepend=0)
