"""Finds images that show the same picture: copies, other sizes and encodings, mirrored ones.

Each image is reduced to a small grey thumbnail. Two images are near-duplicates if their thumbnails
correlate. Among the photographs of the test data, the highest correlation of two different pictures
is 0.77, and the lowest of two versions of one picture is 0.95. Cropped and zoomed versions are not
found.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from multibox.data.images import read_image

SAME_PICTURE = 0.9
"""Minimum correlation of the thumbnails of near-duplicates."""

_SIDE = 24
_ROWS = 1024


def thumbnails(paths: Sequence[Path], *, threads: int) -> Float32[np.ndarray, "N P"]:
    """Returns a thumbnail of each image: a vector with mean 0 and norm 1.

    Args:
        paths: The image files.
        threads: The number of images to decode at the same time.

    Raises:
        DataError: An image cannot be decoded.
    """
    found = np.empty((len(paths), _SIDE * _SIDE), np.float32)
    # Decoding releases the GIL.
    pool = ThreadPoolExecutor(threads)
    try:
        for place, image in enumerate(pool.map(_read_thumbnail, paths)):
            found[place] = image
    finally:
        # After an interrupt, do not wait for the remaining images.
        pool.shutdown(cancel_futures=True)
    return found


def _read_thumbnail(path: Path) -> Float32[np.ndarray, " P"]:
    return thumbnail(read_image(path))


def thumbnail(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, " P"]:
    """Returns the thumbnail of an RGB image: a vector with mean 0 and norm 1."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    centred = small - small.mean()
    norm = float(np.linalg.norm(centred))
    # All blank images look the same.
    vector = centred / norm if norm > 1 else np.full_like(small, 1 / _SIDE)
    return vector.ravel()


def group_similar(
    thumbnails: Float32[np.ndarray, "N P"], least: float = SAME_PICTURE
) -> Int64[np.ndarray, " N"]:
    """Returns a number for each image, which is equal for all images of a group.

    The number is the place of the group's first image. A group contains the images that chains of
    near-duplicates connect. An image may be mirrored.

    Args:
        thumbnails: The thumbnails.
        least: Minimum correlation of near-duplicates.
    """
    mirrored = thumbnails.reshape(-1, _SIDE, _SIDE)[:, :, ::-1].reshape(thumbnails.shape)
    groups = np.arange(len(thumbnails))
    for start in range(0, len(thumbnails), _ROWS):
        rows = thumbnails[start : start + _ROWS]
        alike = np.maximum(rows @ thumbnails.T, rows @ mirrored.T) >= least
        for row, similar in enumerate(alike, start=start):
            connected = groups[similar]
            first = min(connected.min(initial=row), groups[row])
            if (connected != first).any() or groups[row] != first:
                groups[np.isin(groups, [*connected, groups[row]])] = first
    return groups
