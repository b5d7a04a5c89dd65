"""Parts of images for the page: small WebP files with boxes that the page draws over them."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIDE_PX = 320
"""Longer side of a picture on the page."""

_QUALITY = 62
# A box of 8 pixels is shown with at least this many pixels around it.
_LEAST_REGION_PX = 64

Box = tuple[float, float, float, float]


def as_box(corners: Iterable[float]) -> Box:
    """Returns four numbers as a tuple."""
    x0, y0, x1, y1 = map(float, corners)
    return x0, y0, x1, y1


class Mark(NamedTuple):
    """A box to draw on a picture.

    Attributes:
        box_px: xyxy in pixels of the image.
        kind: Whether it is an annotated object or a detection.
        text: The class, and the score of a detection.
        focus: Whether the picture is about this box.
    """

    box_px: Box
    kind: Literal["object", "detection"]
    text: str
    focus: bool = False


def region_around(
    boxes_px: Sequence[Box], size_px: tuple[int, int], *, margin: float = 0.6
) -> tuple[int, int, int, int]:
    """Returns the part of an image that shows some boxes and what is around them.

    Args:
        boxes_px: xyxy in pixels.
        size_px: (width, height) of the image.
        margin: Space on each side, as a multiple of the longer side of the boxes together.

    Returns:
        xyxy in whole pixels, inside the image.
    """
    x0, y0 = (min(box[axis] for box in boxes_px) for axis in (0, 1))
    x1, y1 = (max(box[axis] for box in boxes_px) for axis in (2, 3))
    side = max(x1 - x0, y1 - y0)
    space = max(margin * side, (_LEAST_REGION_PX - side) / 2)
    low = [max(0, math.floor(value - space)) for value in (x0, y0)]
    high = [
        max(start + 1, min(size, math.ceil(value + space)))
        for start, size, value in zip(low, size_px, (x1, y1), strict=True)
    ]
    left, top = (min(start, size - 1) for start, size in zip(low, size_px, strict=True))
    return left, top, high[0], high[1]


def scaled_part(
    pixels: UInt8[np.ndarray, "H W 3"], region: tuple[int, int, int, int], side_px: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a part of an image, scaled so that its longer side has a number of pixels.

    Args:
        pixels: The image.
        region: xyxy in whole pixels.
        side_px: The longer side of the result.
    """
    x0, y0, x1, y1 = region
    part = pixels[y0:y1, x0:x1]
    scale = side_px / max(part.shape[:2])
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, size, interpolation=shrinks))


def webp(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    """Returns an RGB image as a WebP file in base64."""
    buffer = io.BytesIO()
    # OpenCV always uses method 4, which takes twice as long and makes files 5 % smaller.
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY, method=2)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def picture(
    pixels: UInt8[np.ndarray, "H W 3"],
    marks: Sequence[Mark],
    *,
    region: tuple[int, int, int, int] | None = None,
    side_px: int = SIDE_PX,
) -> dict[str, Any]:
    """Returns a part of an image with the boxes in it, as a JSON value for the page.

    Args:
        pixels: The RGB image.
        marks: The boxes. Those outside of the part are left out.
        region: The part, xyxy in whole pixels. None: the whole image.
        side_px: The longer side of the picture.

    Returns:
        `image`: the WebP file in base64; `width` and `height` in pixels; `boxes`: corners in pixels
        of the picture, the kind, whether it is in focus, and the text.
    """
    region = region or (0, 0, pixels.shape[1], pixels.shape[0])
    part = scaled_part(pixels, region, side_px)
    height, width = part.shape[:2]
    x0, y0, x1, y1 = region
    scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
    boxes = []
    for mark in marks:
        corners = (np.array(mark.box_px) - [x0, y0, x0, y0]) * scale
        left, top, right, bottom = corners.round(1).tolist()
        if right > 0 and bottom > 0 and left < width and top < height:
            boxes.append([left, top, right, bottom, mark.kind, int(mark.focus), mark.text])
    return {"image": webp(part), "width": width, "height": height, "boxes": boxes}
