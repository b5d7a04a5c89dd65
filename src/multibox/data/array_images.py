"""Converts images in memory to RGB pixels: NumPy arrays and Pillow images."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from multibox.errors import DataError


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that `Detector` uses."""

    mode: str

    def convert(self, mode: str) -> Any:
        """Returns a copy in another mode."""
        ...


def rgb_pixels(image: object) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an image in memory.

    Args:
        image: A Pillow image or an array, as `Detector` takes them.

    Raises:
        DataError: It is neither, or its type or shape is not that of an image with 8 bits.
    """
    if isinstance(image, PillowImage):
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"the image has the mode {image.mode!r}, which does not have 8 bits",
                kind="image-format",
                remedy="Scale it to 0..255 and convert it to mode 'L' or 'RGB'",
            )
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"the image is of type {type(image).__name__}",
            kind="image-format",
            remedy="Give a path, a NumPy array or a Pillow image",
        )
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(
            f"the image is a {image.dtype} array of shape {image.shape}",
            kind="image-format",
            remedy="Give uint8 pixels, 0..255, of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)",
        )
    if not pixels.size:
        raise DataError("the image has no pixels", kind="image-empty", remedy="Give another image")
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
