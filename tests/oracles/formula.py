"""Parameters and an image that a formula defines, in numpy alone.

So a recorded result needs no file of weights, and can be computed where PyTorch is not installed.
"""

import math
import zlib

import numpy as np


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns numbers in -1..1, float64."""
    phase = zlib.crc32(name.encode()) % 100_003 / 7.0
    value = np.sin(np.arange(math.prod(shape)) * 12.9898 + phase) * 43758.5453
    return ((value - np.floor(value)) * 2 - 1).reshape(shape)


def kernel(name: str, shape: tuple[int, ...], gain: float = 0.8) -> np.ndarray:
    """Returns a convolution's weights. With a gain of 1, they keep the size of the numbers."""
    fan_in = math.prod(shape[1:])
    return (gain * noise(name, shape) * math.sqrt(6 / fan_in)).astype(np.float32)


def image(side: int = 300) -> np.ndarray:
    """Returns an RGB image, (side, side, 3), uint8."""
    y, x = np.mgrid[:side, :side]
    channels = [np.sin(x / (9 + 3 * k) + k) * np.cos(y / (13 - 2 * k) - k) for k in range(3)]
    return np.round(127.5 + 127.5 * np.stack(channels, axis=2)).astype(np.uint8)
