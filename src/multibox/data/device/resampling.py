"""What OpenCV's resize reads along one axis: for each output pixel some pixels and their weights.

Each kind is `cv2.resize`'s own definition (OpenCV, `modules/imgproc/src/resize.cpp`), and the
weights are whole numbers of 1/2048, as OpenCV itself has them for uint8
(`INTER_RESIZE_COEF_BITS`). So `batched.render` computes with numbers that float32 holds exactly.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, Int64

UNIT = 2048
"""The sum of an output pixel's weights."""

_CUBIC = -0.75
# How many pixels to either side of its centre an output pixel reads.
_REACH_PX = {cv2.INTER_LINEAR: 1, cv2.INTER_CUBIC: 2, cv2.INTER_LANCZOS4: 4}


class Taps(NamedTuple):
    """What each of n output pixels reads.

    Attributes:
        places: Pixels of the input; some may be there twice, some with a weight of 0.
        weights: Their weights; each row's sum is `UNIT`.
    """

    places: Int64[np.ndarray, "n K"]
    weights: Int64[np.ndarray, "n K"]


def find_taps(extent_px: int, size_px: int, interpolation: int, *, shrinks: bool) -> Taps:
    """Returns the taps that resize an axis.

    Args:
        extent_px: The axis' length before.
        size_px: Its length after.
        interpolation: `cv2.INTER_*`.
        shrinks: Whether neither axis of the image grows: only then does AREA take areas.
    """
    # In OpenCV's order, whose rounding decides about pixels on a border.
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
        # Linear between the centres of two pixels' shares of an output pixel; in float32, which
        # sometimes rounds to the next pixel.
        first = np.floor(output * scale)
        fraction = (output + 1 - (first + 1) * inverse).astype(np.float32).astype(np.float64)
        fraction = np.where(fraction <= 0, 0, fraction - np.floor(fraction))
        shares = np.stack([1 - fraction, fraction], axis=1)
    else:
        first = np.floor(output * scale)
        shares = np.ones((size_px, 1))
    places = first[:, None].astype(np.int64) + np.arange(shares.shape[1])
    return Taps(np.clip(places, 0, extent_px - 1), _whole(shares))


def _kernel(distance: Float64[np.ndarray, "n K"], reach_px: int) -> Float64[np.ndarray, "n K"]:
    """Returns the weights of pixels at a distance from an output pixel's centre."""
    if reach_px == 1:
        return 1 - distance
    if reach_px == 4:
        return np.asarray(np.sinc(distance) * np.sinc(distance / 4))
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.asarray(np.where(distance <= 1, near, far))


def _whole(shares: Float64[np.ndarray, "n K"]) -> Int64[np.ndarray, "n K"]:
    """Returns the shares in units, each row's sum exact: their running sums are rounded."""
    sums = shares.cumsum(axis=1)
    rounded = np.rint(sums * (UNIT / sums[:, -1:])).astype(np.int64)
    return np.diff(rounded, axis=1, prepend=0)
