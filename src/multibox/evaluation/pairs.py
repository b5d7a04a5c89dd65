"""Pairs the detections and objects of the same image, and measures how much they overlap."""

import numpy as np
from jaxtyping import Float64, Int64


def of_the_same_image(
    images: Int64[np.ndarray, " N"], object_images: Int64[np.ndarray, " G"]
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Returns the indices of all pairs, sorted by detection, then by object.

    Args:
        images: The image of each detection.
        object_images: The image of each object.
    """
    by_image = np.argsort(object_images, kind="stable")
    sorted_images = object_images[by_image]
    start = np.searchsorted(sorted_images, images)
    count = np.searchsorted(sorted_images, images, side="right") - start
    detection = np.repeat(np.arange(len(images)), count)
    first = np.cumsum(count) - count
    return detection, by_image[np.arange(len(detection)) + np.repeat(start - first, count)]


def place_among_equals(values: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Returns for each value how many equal values come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    places = np.empty(len(values), np.int64)
    places[order] = np.arange(len(values)) - np.repeat(new, np.diff(new, append=len(values)))
    return places


def overlaps(
    a: Float64[np.ndarray, "P 4"], b: Float64[np.ndarray, "P 4"], *, last_pixels: bool
) -> Float64[np.ndarray, " P"]:
    """Returns the intersection over union of pairs of boxes.

    Args:
        a: xyxy in pixels.
        b: xyxy in pixels.
        last_pixels: Whether a box includes its last pixels, as in the VOC devkit.
    """
    width, height = _sides(np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:]))
    intersection = (width + last_pixels).clip(min=0) * (height + last_pixels).clip(min=0)
    areas = [
        (width + last_pixels) * (height + last_pixels)
        for width, height in (_sides(box[:, :2], box[:, 2:]) for box in (a, b))
    ]
    union = areas[0] + areas[1] - intersection
    result: np.ndarray = np.divide(
        intersection, union, out=np.zeros(len(a)), where=intersection > 0
    )
    return result


def _sides(
    low: Float64[np.ndarray, "P 2"], high: Float64[np.ndarray, "P 2"]
) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
    width, height = (high - low).T
    return width, height
