"""The publishers of weights: what is the same for all their files."""

from typing import NamedTuple

from torch import Tensor

from multibox.ssd.default_boxes import Clip
from multibox.structures import MEAN_RGB

# Torchvision's SSD300 subtracts this from pixels in 0..1 (`detection/ssd.py`).
TORCHVISION_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)

_LICENCE = (
    "published with {} (its code: {}); no terms stated for the weights, which learnt from ImageNet "
    "and, if a detector, from VOC or COCO"
)


class Origin(NamedTuple):
    """What is the same for all files of one publisher.

    Attributes:
        title: Its name, for people.
        licence: What is known of the terms of use.
        mean_rgb: What its loader subtracts from the pixels.
        clip: How it clips default boxes.
        clip_detections: Whether it clips boxes before suppression.
    """

    title: str
    licence: str
    mean_rgb: tuple[float, float, float] = MEAN_RGB
    clip: Clip = "none"
    clip_detections: bool = False


CAFFE = Origin("Caffe", _LICENCE.format("weiliu89/caffe", "BSD-2-Clause"))
SSD_KERAS = Origin("ssd_keras", _LICENCE.format("pierluigiferrari/ssd_keras", "Apache-2.0"))
SSD_PYTORCH = Origin("ssd.pytorch", _LICENCE.format("amdegroot/ssd.pytorch", "MIT"), clip="centre")
LUFFICC = Origin("lufficc/SSD", _LICENCE.format("lufficc/SSD", "MIT"), clip="centre")
TORCHVISION = Origin(
    "torchvision",
    _LICENCE.format("torchvision", "BSD-3-Clause"),
    TORCHVISION_MEAN,
    clip="sides",
    clip_detections=True,
)


class Found(NamedTuple):
    """What a reader took from a file.

    Attributes:
        origin: Whose it is.
        tensors: By Caffe's names, `conv1_1.weight`.
        bgr: Whether conv1_1 takes blue first.
        first_scale: The finest default boxes' as a fraction of the image's side, if known.
        clipped: Whether the file says that corners of default boxes are clipped.
        notes: What was altered, a clause each.
    """

    origin: Origin
    tensors: dict[str, Tensor]
    bgr: bool = False
    first_scale: float | None = None
    clipped: bool = False
    notes: tuple[str, ...] = ()
