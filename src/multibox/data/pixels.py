"""Renders a network input from an image: crop, resize, colour distortion and mirror.

Caffe distorts the whole image, copies it into a canvas of up to 16 times its size, cuts out the
patch and resizes that (SSD section 2.2, `annotated_data_layer.cpp:147-229`). Here only the pixels
in the patch are read, directly from the image. Deliberate differences from Caffe:

- The image is not re-encoded as JPEG between the stages.
- Colours are distorted after the resize if that means fewer pixels, and saturation and hue share
  one conversion to HSV and back. The results differ by rounding and clipping to 0..255 only.
- If the patch reaches beyond the image, the image may be shifted by up to 1/32 pixel of the output
  (more for a few scales: see `_edge`), because only a part of the patch is resized.

Images are RGB. Caffe's are BGR, which makes no difference except for the order of the mean.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.config import AugmentationConfig
from multibox.data.geometry import Geometry
from multibox.structures import MEAN_RGB

# `ssd_pascal.py:191-203`.
BRIGHTNESS_DELTA = 32.0
CONTRAST_FACTORS = (0.5, 1.5)
SATURATION_FACTORS = (0.5, 1.5)
HUE_DELTA = 18.0

# LANCZOS4 has the widest kernel: it reads pixels up to this far from its centre.
_REACH_PX = 4
# `_edge` may enlarge the margin that is resized with the image by up to this many image pixels, to
# place the image exactly.
_SLACK_PX = 64
# A place counts as exact if it is off by at most 1/32 of an output pixel.
_PRECISION = 32


class Colour(NamedTuple):
    """A colour distortion (`im_transforms.cpp:551-730`). The defaults leave the image unchanged.

    Attributes:
        brightness: Added to R, G and B, in levels of 0..255.
        contrast: Factor of R, G and B. Level 0 does not change; the mean level does.
        saturation: Factor of the saturation.
        hue: Added to the hue, in OpenCV's units of two degrees.
        contrast_last: Whether contrast comes after hue instead of before saturation.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_last: bool = False


def draw_colour(rng: np.random.Generator, config: AugmentationConfig) -> Colour:
    """Returns a random distortion. Each of the four stages has a probability of one half.

    Contrast comes last with a probability of one half, too.
    """
    if not config.distort:
        return Colour()
    brightness, contrast, saturation, hue, contrast_last = rng.random(5) < 0.5
    return Colour(
        rng.uniform(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA) if brightness else 0.0,
        rng.uniform(*CONTRAST_FACTORS) if contrast else 1.0,
        rng.uniform(*SATURATION_FACTORS) if saturation else 1.0,
        rng.uniform(-HUE_DELTA, HUE_DELTA) if hue else 0.0,
        bool(contrast_last),
    )


def render(
    image: UInt8[np.ndarray, "H W 3"],
    geometry: Geometry,
    colour: Colour | None,
    size: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the network input that a geometry and a colour distortion make from an image.

    Args:
        image: RGB, as decoded.
        geometry: The crop, interpolation and mirroring. The crop is `MEAN_RGB` outside the image.
        colour: The distortion of the image, or None for none. It does not change the mean colour
            outside the image.
        size: (height, width) of the output.
    """
    x0, y0, x1, y1 = geometry.crop_px
    rows = _lay(y0, y1, image.shape[0], size[0])
    columns = _lay(x0, x1, image.shape[1], size[1])
    visible = image[rows.visible, columns.visible]
    if not visible.size:
        return np.full((*size, 3), MEAN_RGB, dtype=np.uint8)
    colour = colour or Colour()
    seen_px = rows.seen_px * columns.seen_px
    distort_first = seen_px == 0 or visible.shape[0] * visible.shape[1] <= seen_px
    if distort_first:
        visible = distort(visible, colour)
    window = _resize(
        _pad(visible, rows.margin, columns.margin),
        (columns.length_px, rows.length_px),
        geometry.interpolation,
    )
    if not distort_first:
        window[rows.seen, columns.seen] = distort(window[rows.seen, columns.seen], colour)
    output = _pad(window, rows.rest, columns.rest)
    return np.asarray(cv2.flip(output, 1)) if geometry.mirror else output


def distort(image: UInt8[np.ndarray, "H W 3"], colour: Colour) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with distorted colours, or the image itself if nothing changes.

    Every operation rounds to uint8 and clips to 0..255. A hue below 0 becomes 0, but a hue of 180
    to 197 wraps around, because the conversion to RGB treats 180 as 0.
    """
    factor, delta = colour.contrast, colour.brightness
    image = _convert(image, (1.0, 1.0, 1.0), (delta, delta, delta))
    if not colour.contrast_last:
        image = _convert(image, (factor, factor, factor))
    if colour.saturation != 1 or colour.hue != 0:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv = _convert(hsv, (1.0, colour.saturation, 1.0), (colour.hue, 0.0, 0.0))
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    if colour.contrast_last:
        image = _convert(image, (factor, factor, factor))
    return image


def _convert(
    image: UInt8[np.ndarray, "H W 3"],
    factors: tuple[float, float, float],
    deltas: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns factor * level + delta of each channel, rounded as in OpenCV's `convertTo`.

    `cv2.transform` gives the same numbers several times faster than a lookup table.
    """
    if factors == (1, 1, 1) and deltas == (0, 0, 0):
        return image
    (a, b, c), (x, y, z) = factors, deltas
    matrix = np.array([[a, 0, 0, x], [0, b, 0, y], [0, 0, c, z]], np.float32)
    return np.asarray(cv2.transform(image, matrix))


def _resize(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], interpolation: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image resized to (width, height)."""
    if interpolation == cv2.INTER_LANCZOS4:
        # For LANCZOS4, OpenCV has vector code only in float32. That is twice as fast as uint8, and
        # the results differ by at most one level.
        resized = cv2.resize(image.astype(np.float32), size, interpolation=interpolation)
        np.clip(np.rint(resized, out=resized), 0, 255, out=resized)
        return np.asarray(resized, dtype=np.uint8)
    return np.asarray(cv2.resize(image, size, interpolation=interpolation))


class _Axis(NamedTuple):
    """The layout of one axis of the crop.

    The *window* is the part of the output that is resized. It shows the visible part of the image
    and, if the crop reaches beyond the image, a margin of the mean colour.
    """

    visible: slice  # the visible part of the image, in image pixels
    margin: tuple[int, int]  # margin before and after it that is resized too, in image pixels
    length_px: int  # length of the window, in output pixels
    seen: slice  # the part of the window that shows the image, in output pixels
    rest: tuple[int, int]  # output pixels before and after the window

    @property
    def seen_px(self) -> int:
        return int(self.seen.stop - self.seen.start)


def _lay(start: int, stop: int, length: int, size: int) -> _Axis:
    """Returns the layout of one axis of the crop.

    Args:
        start: First image pixel of the crop. It may be negative.
        stop: End of the crop in image pixels, exclusive. It may be above `length`.
        length: Length of the image on this axis, in pixels.
        size: Length of the output on this axis, in pixels.
    """
    extent = stop - start
    low, high = max(start, 0), max(min(stop, length), 0)
    first, last = 0, size
    slack = math.ceil(_SLACK_PX * size / extent)
    if start < 0:
        nearest = max(math.floor((low - start - _REACH_PX) * size / extent), 0)
        first = _edge(range(nearest, max(nearest - slack, 0) - 1, -1), extent, size)
    if stop > length:
        nearest = min(math.ceil((high - start + _REACH_PX) * size / extent), size)
        last = _edge(range(nearest, min(nearest + slack, size) + 1), extent, size)
    source = (start + round(first * extent / size), start + round(last * extent / size))
    seen = (round((low - start) * size / extent), round((high - start) * size / extent))
    return _Axis(
        visible=slice(low, high),
        margin=(low - source[0], source[1] - high),
        length_px=last - first,
        seen=slice(seen[0] - first, seen[1] - first),
        rest=(first, size - last),
    )


def _edge(candidates: Iterable[int], extent: int, size: int) -> int:
    """Returns the output pixel at which the window begins or ends.

    `cv2.resize` reads and writes whole pixels. So the window should begin at a place where both an
    output pixel and an image pixel begin. Then it equals the same part of the resized crop. This
    function returns the first candidate at which the two agree to 1/32 of an output pixel. If there
    is none, it returns the candidate at which they agree best.
    """
    best, least = -1, size
    for candidate in candidates:
        remainder = candidate * extent % size
        error = min(remainder, size - remainder)
        if error < least:
            best, least = candidate, error
        if least * _PRECISION <= extent:
            break
    return best


def _pad(
    image: UInt8[np.ndarray, "H W 3"], rows: tuple[int, int], columns: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image with a margin of the mean colour, or the image itself without a margin."""
    if not any(rows + columns):
        return image
    return cv2.copyMakeBorder(image, *rows, *columns, cv2.BORDER_CONSTANT, value=MEAN_RGB)
