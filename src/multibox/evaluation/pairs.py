"""Pairs the detections and objects of the same image."""

import numpy as np
from jaxtyping import Int64


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
